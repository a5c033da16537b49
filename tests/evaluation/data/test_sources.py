"""What the name of a data set stands for: what is there is found, what is not is named at the start."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from modeling_siglip_ext.evaluation.data import load
from modeling_siglip_ext.evaluation.data.layouts import is_local, splits_in
from modeling_siglip_ext.evaluation.data.sources import check_present, expand, kind_of, shards_of, short_name
from support.shards import encoded, write_tar


PAIR = [("a.png", encoded(3)), ("a.txt", b"a cat")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """A server of the files in `tmp_path`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_ranges_choices_globs_and_lists(tmp_path, monkeypatch):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "s-x.tar", "odd {0..1}[2]?.tar", "._s-08.tar"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert expand("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert expand("s-{x,09}.tar") == ["s-x.tar", "s-09.tar"]
    assert expand("{s,t}-{8..9}.tar") == ["s-8.tar", "s-9.tar", "t-8.tar", "t-9.tar"]
    assert expand("*.tar") == sorted(["s-08.tar", "s-09.tar", "s-10.tar", "s-x.tar", "odd {0..1}[2]?.tar"])
    assert expand("odd {0..1}[2]?.tar") == ["odd {0..1}[2]?.tar"], "a file that is there"
    assert expand("s-08.tar::s-x.tar") == expand(["s-08.tar", "s-x.tar"]) == ["s-08.tar", "s-x.tar"]
    signed = "https://localhost:1/s-{0..1}.tar?x={2..3}&y=*::z"
    assert expand([signed]) == [signed.replace("{0..1}", n) for n in "01"]
    for wrong, reason in (("s-{3..1}.tar", r"counts backwards: write \{1\.\.3\}"), ("", "is empty"), ([], "no file")):
        with pytest.raises(ValueError, match=reason):
            expand(wrong)
    with pytest.raises(ValueError, match=r"more than 1,000,000 files"):
        expand("s-{0..99999999999}.tar")


def test_what_is_absent_is_counted_and_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "2.tar").mkdir()
    check_present([str(tmp_path / "0.tar"), f"file://{tmp_path}/0.tar"])
    with pytest.raises(FileNotFoundError, match=r"^3 of 4 files: .*1\.tar does not exist, .*2\.tar is a folder: name"):
        check_present(expand(f"{tmp_path}/{{0..3}}.tar"))
    with pytest.raises(FileNotFoundError, match=r"^19 of 20 files: .*, and 14 more$"):
        check_present(expand(f"{tmp_path}/{{0..19}}.tar"))
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        check_present(["nowhere://a/b.tar"])


def test_addresses(address, tmp_path):
    write_tar(tmp_path / "0.tar", PAIR)
    (tmp_path / "x.csv").write_text("image,caption\n0.png,a cat\n")
    (tmp_path / "0.png").write_bytes(encoded(5))
    load(f"{tmp_path}/x.csv").to_parquet(tmp_path / "x.parquet")
    assert load(f"{address}/0.tar?signature=a%2Fb")[0]["caption"] == ["a cat"]
    assert load(f"{address}/x.csv?signature=abc").data.column("image")[0].as_py()["path"] == f"{address}/0.png"
    assert load(f"{address}/x.parquet?signature=abc")[0]["image"].getpixel((0, 0))[0] == 5
    with pytest.raises(FileNotFoundError, match=r"2 of 3 files: http.*/1\.tar.*/2\.tar"):
        check_present(expand(f"{address}/{{0..2}}.tar"))
    with pytest.raises(FileNotFoundError, match=r"https://localhost:1/x\.tar\?signature=abc cannot be read"):
        load("https://localhost:1/x.tar?signature=abc")
    assert short_name("https://host/a/x.tar?signature=abc") == "x.tar"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("A.CSV", "csv"),
        ("a.tsv.gz", "csv"),
        ("a.jsonl.xz", "json"),
        ("a.tar.gz", "tar"),
        ("a.tgz", "tar"),
        ("https://host/a.tar?b=c.csv", "tar"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("user/data.set", None),
        ("folder", None),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_names_that_can_only_be_files_are_not_looked_for_on_the_hub(tmp_path):
    for name in ("./nothing", "~/nothing-at-all", "a/b/c", "data/x.parquet", "x.tar.gz"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            is_local(name)
    assert not is_local("user/name")
    assert is_local(str(tmp_path))
    assert is_local("s-{0..3}.tar")


def test_shards_are_named_or_in_a_folder(tmp_path):
    assert shards_of("s-{0..3}.tar") == ["s-{0..3}.tar"]
    assert shards_of("a.tar::b.tgz") == ["a.tar", "b.tgz"]
    assert shards_of("emoji") == shards_of(str(tmp_path)) == shards_of("a.csv") == []
    (tmp_path / "train").mkdir()
    for name in ("1.tar.gz", "0.tar", "._0.tar"):
        (tmp_path / "train" / name).write_bytes(b"")
    names = [f"{tmp_path}/train/{name}" for name in ("0.tar", "1.tar.gz")]
    assert shards_of(str(tmp_path), "train") == shards_of(f"{tmp_path}/train") == names
    (tmp_path / "train" / "a.png").write_bytes(b"")
    assert shards_of(f"{tmp_path}/train") == [], "a folder of images with a copy beside them"


def test_folders_of_splits(tmp_path):
    for name in ("train", "test", ".git"):
        (tmp_path / "both" / name).mkdir(parents=True)
    for name in ("car", "bus", "train"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    assert splits_in(f"{tmp_path}/both") == ["test", "train"]
    assert splits_in(f"{tmp_path}/classes") == splits_in("user/name") == []
