"""Tar shards as people make them: every sample is read, or counted and named; `make fuzz` draws more of them."""

import errno
import io
import json
import tarfile
from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.data import columns, load, samples_of_members, tar_shards
from modeling_siglip_ext.evaluation.data.samples_of_members import DROPPED
from modeling_siglip_ext.evaluation.data.shard_rows import samples_of
from modeling_siglip_ext.evaluation.data.tar_shards import checked, read_shard
from support.shards import encoded, tar_of, write_tar


APPLE_DOUBLE = b"\0\5\x16\7" + b"\0" * 60


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    return [
        (f"{key}{suffix}", content)
        for place, key in enumerate(keys)
        for suffix, content in ((".png", encoded(place)), (".txt", f"caption of {key}".encode()))
    ]


def read(path: str) -> dict[str, list[str] | str]:
    """Key to the captions of a sample, or to why it is dropped."""
    found = {}
    for name, row in read_shard(path):
        key = name.removeprefix(f"{path}: ")
        assert key not in found or DROPPED in row
        if DROPPED in row:
            key = f"!{key}"
        else:
            assert row["image"]
        found[key] = row.get(DROPPED) or row.get("caption", [])
    return found


def test_what_a_mac_puts_beside_the_files_is_passed_over(tmp_path):
    members = [("./__MACOSX/._a.png", APPLE_DOUBLE), ("./.DS_Store", b"x")]
    for name, content in pairs("a", "b"):
        members += [(f"./._{name}", APPLE_DOUBLE), (f"./{name}", content)]
    assert read(write_tar(tmp_path / "mac.tar", members)) == {"a": ["caption of a"], "b": ["caption of b"]}


@pytest.mark.parametrize("keys", [[f"img.{n}" for n in range(6)], ["2024.01.02 at 10.11", "2024.01.02 at 10.12"]])
def test_dotted_names_are_names(keys, tmp_path):
    assert read(write_tar(tmp_path / "0.tar", pairs(*keys))) == {key: [f"caption of {key}"] for key in keys}


def test_a_further_part_of_a_sample_is_no_sample(tmp_path):
    members = []
    for key in ("a", "b"):
        parts = {".json": b'{"width": 4}', ".png": encoded(), ".seg.png": encoded(9), ".txt": key.encode()}
        members += [(f"{key}{suffix}", content) for suffix, content in parts.items()]
    assert read(write_tar(tmp_path / "0.tar", members)) == {"a": ["a"], "b": ["b"]}
    assert read(write_tar(tmp_path / "1.tar", sorted(members, key=lambda one: one[0][1:]))) == {"a": ["a"], "b": ["b"]}


def test_a_key_that_comes_again_is_counted_and_named(tmp_path):
    found = list(read_shard(write_tar(tmp_path / "0.tar", pairs(*["0000"] * 6))))
    assert [DROPPED in row for _, row in found].count(False) == 1
    reasons = [row[DROPPED] for _, row in found if DROPPED in row]
    assert reasons == ["0000.png comes more than once: give every sample a name of its own"] * 5
    again = read(write_tar(tmp_path / "1.tar", pairs("a", "b", "a")))
    assert again.keys() == {"a", "b", "!a"}
    assert again["!a"].startswith("a.png comes again after its sample was read")
    second = read(write_tar(tmp_path / "2.tar", [*pairs("a"), ("a.jpg", encoded(3, "JPEG"))]))
    assert second["!a"].startswith("a.jpg is a second image")


def test_most_of_a_shard_dropped_is_an_error(tmp_path):
    path = write_tar(tmp_path / "0.tar", pairs(*["0000"] * 6))
    with pytest.raises(ValueError, match=r"0\.tar: 5 of 6 samples cannot.*0000: 0000\.png comes more than once"):
        list(checked(path, read_shard(path)))
    alone = write_tar(tmp_path / "1.tar", [(f"{n}.png", encoded(n)) for n in range(3)])
    with pytest.raises(ValueError, match=r"3 of 3 samples.*0: an image alone, without \.txt"):
        list(checked(alone, read_shard(alone)))
    assert len(list(checked(alone, read_shard(alone), images_alone=True))) == 3


def test_images_and_texts_may_stand_apart(tmp_path, monkeypatch):
    members = pairs(*"abcdef")
    path = write_tar(tmp_path / "0.tar", members[::2] + members[1::2])
    assert read(path) == {key: [f"caption of {key}"] for key in "abcdef"}
    monkeypatch.setattr(samples_of_members, "HELD_BYTES", 2 * len(members[0][1]))
    found = read(path)
    assert {key for key, captions in found.items() if captions == []} == set("abcd")
    assert {key for key in found if key.startswith("!")} == {f"!{key}" for key in "abcd"}
    assert "away from the rest of its sample" in found["!a"]
    with pytest.raises(ValueError, match="near each other"):
        list(checked(path, read_shard(path)))


@pytest.mark.parametrize("image", [".PNG", ".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("text", [".txt", ".TXT", ".caption", ".text", ".json", ".JSON", f"{'.jpg'}.txt"])
def test_suffixes_in_any_case(image, text, tmp_path):
    content = b'{"caption": "a cat"}' if text.lower() == ".json" else b"a cat\n"
    path = write_tar(tmp_path / "0.tar", [(f"d/a{image}", encoded(1, "WEBP")), (f"d/a{text}", content)])
    captions = read(path)["d/a"]
    assert captions in (["a cat"], "a cat")


def test_a_text_goes_before_json(tmp_path):
    fields = json.dumps({"caption": "from json", "width": 4, "status": "success"}).encode()
    for order in ((".json", ".txt"), (".txt", ".json")):
        contents = {".json": fields, ".txt": b"\xef\xbb\xbffrom text\r\n"}
        members = [("0.png", encoded()), *((f"0{suffix}", contents[suffix]) for suffix in order)]
        ((_, row),) = read_shard(write_tar(tmp_path / "0.tar", members))
        assert (row["caption"], row["width"]) == (["from text"], 4)
    ((_, row),) = read_shard(
        write_tar(tmp_path / "1.tar", [("0.png", encoded()), ("0.json", b'{"title": "a title"}')])
    )
    assert row["caption"] == "a title"


def test_texts_that_cannot_be_read_are_named(tmp_path):
    members = [(f"{n}.png", encoded(n)) for n in range(4)]
    members += [
        ("0.txt", "caf\xe9".encode("cp1252")),
        ("1.json", b"{"),
        ("2.json", b"[1]"),
        ("3.txt", "\u00e9".encode("utf-16")),
    ]
    found = read(write_tar(tmp_path / "0.tar", members))
    assert found["!0"] == "its .txt is not UTF-8 (byte 0xe9) in line 1: save it as UTF-8"
    assert found["!1"].startswith("its .json Expecting")
    assert found["!2"] == "its .json holds no mapping"
    assert found["3"] == ["\u00e9"]


@pytest.mark.parametrize(
    ("name", "mode"), [("0.tar.gz", "w:gz"), ("0.tgz", "w:gz"), ("0.TAR.bz2", "w:bz2"), ("0.txz", "w:xz")]
)
def test_compressed_shards(name, mode, tmp_path):
    assert read(write_tar(tmp_path / name, pairs("a"), mode)) == {"a": ["caption of a"]}
    assert len(load(str(tmp_path / name))) == 1


def test_shards_without_samples_say_so(tmp_path):
    for name, content, reason in (
        ("empty.tar", tar_of([]), "holds no image and no caption"),
        ("nothing.tar", b"", "broken shard, ReadError"),
        ("page.tar", b"<html>not found</html>" * 100, "broken shard, ReadError: cut short at byte 0"),
        ("other.tar", tar_of([("README.md", b"x")]), "holds no image and no caption"),
    ):
        (tmp_path / name).write_bytes(content)
        ((where, row),) = read_shard(str(tmp_path / name))
        assert where == str(tmp_path / name)
        assert row[DROPPED].startswith(reason)
        with pytest.raises(ValueError, match=f"{name} holds no image: {row[DROPPED][:12]}"):
            load(str(tmp_path / name))


def test_links_are_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in pairs("a"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere.png"
        archive.addfile(link)
    assert read(str(tmp_path / "0.tar"))["!b.png"].startswith("is a link and no file")


def test_a_member_of_negative_size_ends_the_file(tmp_path):
    """`tarfile` goes back and reads it for ever (CVE-2025-8194)."""
    packed = bytearray(tar_of(pairs("a", "b")))
    header = tarfile.TarInfo("b.png")
    content = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    content[124:136] = (-1024).to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content):06o}\0 ".encode()
    start = packed.index(b"b.png")
    packed[start : start + 512] = content
    (tmp_path / "0.tar").write_bytes(packed)
    assert DROPPED in list(read_shard(str(tmp_path / "0.tar")))[-1][1]


def test_rows_of_shards_for_evaluation(tmp_path, caplog):
    members = [*pairs("a", "b", "c", "d"), ("d.cls", b"3"), ("e.txt", b"no image"), ("._a.png", APPLE_DOUBLE)]
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar.gz", pairs("x", "y"), "w:gz")
    rows = load(str(tmp_path))
    assert rows["__key__"][:] == ["a", "b", "c", "d", "x", "y"]
    caption = columns.column(rows, None, columns.CAPTION_COLUMNS, "caption")
    assert columns.captions(rows, caption)[4] == ["caption of x"]
    assert columns.column(rows, "jpg", (), "image") == "image"
    assert columns.column(rows, "txt", (), "caption") == "caption"
    assert rows["cls"][:] == [None, None, None, 3, None, None]
    assert rows[1]["image"].getpixel((0, 0)) == (1, 0, 7)
    assert "1 of 7 samples are left out: " in caplog.text
    assert "e: no image, only caption" in caplog.text
    caplog.clear()
    assert load(str(tmp_path))._fingerprint == rows._fingerprint
    assert "1 of 7 samples are left out" in caplog.text, "also when the rows come from the cache"
    write_tar(tmp_path / "0.tar", pairs("z"))
    assert load(str(tmp_path))["__key__"][:] == ["z", "x", "y"]


# ---- any members in any order

KEYS = st.sampled_from(["a", "b", "c", "img.0", "img.1", "img", "d/a", "d/img.0"])
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".txt", ".json", ".TXT", ".caption", ".md", ".cls", ""])


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "no answer"), TimeoutError("no answer")], ids=["disk", "net"])
def test_a_failure_of_the_system_is_no_defect_of_the_file(failure, tmp_path, monkeypatch):
    """What is read once is kept, and a part of it would be all that later evaluations see."""
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{number}.png", encoded(number)) for number in range(40)])
    size = path.stat().st_size

    class Failing(io.FileIO):
        def read(self, count=-1):
            if self.tell() > size // 2:
                raise failure
            return super().read(count)

    with monkeypatch.context() as patch:
        patch.setattr(tar_shards.fsspec, "open", lambda *_: Failing(path))
        with pytest.raises(OSError, match="no answer"):
            load(str(path))
        *_, (_, last) = read_shard(str(path))  # in training the rest is left out, and counted
        assert "no answer" in last[DROPPED]
    assert len(load(str(path))) == 40


@st.composite
def archives(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """Members whose content says whose they are."""
    members = []
    for place in range(draw(st.integers(0, 14))):
        key, suffix = draw(KEYS), draw(SUFFIXES)
        kind = suffix.lower()
        if kind in (".png", ".jpg"):
            content = f"{place} {key}".encode()
        else:
            content = json.dumps({"caption": key}).encode() if kind == ".json" else key.encode()
        junk = draw(st.sampled_from(["", "", "", "", "._", "__MACOSX/._"]))
        folder, _, name = key.rpartition("/")
        members.append((f"{folder}/{junk}{name}{suffix}".lstrip("/"), content))
    return members


def is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in (".png", ".jpg") and not path.name.startswith("._")


@given(members=archives(), mode=st.sampled_from(["w", "w:gz"]))
@settings(max_examples=25)
def test_every_image_is_given_once_or_named(members, mode, tmp_path_factory):
    path = write_tar(tmp_path_factory.mktemp("fuzz") / "0.tar", members, mode)
    given_images, named = [], set()
    for name, row in read_shard(path):
        key = name.removeprefix(f"{path}: ")
        if DROPPED in row:
            named.add(key)
        elif "image" in row:
            content = row["image"].decode()
            assert content.partition(" ")[2] == key, "an image of another sample"
            captions = row.get("caption", [])
            assert set(captions if isinstance(captions, list) else [captions]) <= {key}, "a caption of another sample"
            given_images.append(content)
    assert len(set(given_images)) == len(given_images)
    keys = {str(PurePosixPath(name).with_suffix("")) for name, _ in members}
    for name, content in members:
        path_of = PurePosixPath(name)
        key, first = str(path_of.with_suffix("")), str(path_of.parent / path_of.name.partition(".")[0])
        if is_image(name) and content.decode() not in given_images:
            assert key in named or (key != first and first in keys), f"{name} is dropped without a word"


@given(
    members=archives(),
    mode=st.sampled_from(["w", "w:gz", "w:xz"]),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
@example(members=[], mode="w:gz", cut=0.08, changes=[])
@settings(max_examples=25)
def test_a_damaged_shard_ends_with_its_reason(members, mode, cut, changes, tmp_path_factory):
    packed = bytearray(tar_of(members, mode))
    for place, value in changes:
        packed[int(place * len(packed))] = value
    path = tmp_path_factory.mktemp("fuzz") / "0.tar"
    path.write_bytes(packed[: int(cut * len(packed))])
    for name, row in read_shard(str(path)):
        assert name.startswith(str(path))
        assert row
        assert isinstance(row.get(DROPPED, ""), str)
    with suppress(ValueError):  # most of it cannot be used
        list(samples_of([str(path)]))
