"""Folders of images as people have them; `make fuzz` draws more of them."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.data import load, select
from modeling_siglip_ext.evaluation.data.image_folder import read_folder
from modeling_siglip_ext.inputs import files_below
from support.shards import encoded


def fill(folder, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "texts",
    [
        {"a.txt": b"one\r\ntwo\n", "b.c.TXT": b"three"},
        {"a.txt": b"\xef\xbb\xbfone\ntwo", "b.c.caption": "three".encode("utf-16")},
        {"a.jpg.txt": b"one\ntwo", "b.c.json": b'{"caption": "three", "width": 4}'},
        {"a.json": b'{"text": ["one", "two"]}', "b.c.text": b"three", "b.c.json": b'{"caption": "other"}'},
    ],
)
def test_captions_beside_the_images(texts, tmp_path):
    junk = {"._a.jpg": b"x", "._a.txt": b"x", ".DS_Store": b"x", "__MACOSX/._c.jpg": b"x", "README.md": b"x"}
    fill(tmp_path, {"a.jpg": encoded(1), "b.c.PNG": encoded(2), **junk, **texts})
    rows = read_folder(tmp_path)
    assert rows["caption"][:] == [["one", "two"], ["three"]]
    assert [image.getpixel((0, 0))[0] for image in rows["image"]] == [1, 2]
    assert [path.name for path in files_below(tmp_path, "image")] == ["a.jpg", "b.c.PNG"]
    before = rows._fingerprint
    assert read_folder(tmp_path)._fingerprint == before
    fill(tmp_path, {"a.jpg": encoded(700)})
    assert read_folder(tmp_path)._fingerprint != before


def test_caption_files_of_another_encoding_are_counted_and_named(tmp_path):
    fill(tmp_path, {f"{n}.png": encoded(n) for n in range(9)} | {f"{n}.txt": b"x" for n in range(9)})
    fill(tmp_path, {f"{n}.txt": "caf\xe9".encode("cp1252") for n in range(7)})
    with pytest.raises(ValueError, match=r"^7 caption files cannot be read: .*/0\.txt is not UTF-8 .*4\.txt is not"):
        read_folder(tmp_path)
    fill(tmp_path, {f"{n}.txt": b"x" for n in range(7)} | {"3.json": b"{"})
    with pytest.raises(ValueError, match=r"^1 caption files cannot be read: .*/3\.json Expecting"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.json", "sub/metadata.csv"]
)
def test_metadata(name, tmp_path):
    rows = [{"file_name": f"{n}.png", "text": ["a \u00e9", "", "NA"][n], "label": n} for n in range(3)]
    separator = "\t" if name.endswith("tsv") else ","
    lines = [separator.join(map(str, row.values())) for row in ({key: key for key in rows[0]}, *rows)]
    text = {"jsonl": "\n".join(map(json.dumps, rows)), "json": json.dumps(rows)}.get(
        name.split(".")[1], "\n".join(lines)
    )
    fill(tmp_path, {name: text.encode("utf-8-sig")})
    fill((tmp_path / name).parent, {f"{n}.png": encoded(n) for n in range(3)})
    found = load(str(tmp_path))
    assert found["text"][:] == ["a \u00e9", "", "NA"]
    assert [image.getpixel((0, 0))[0] for image in found["image"]] == [0, 1, 2]
    data = select(str(tmp_path), task="retrieval", caption_column="text")
    assert data.captions == [["a \u00e9"], [], ["NA"]]


def test_metadata_that_cannot_be_read_is_named(tmp_path):
    fill(tmp_path, {"0.png": encoded(), "metadata.csv": "file_name,text\n0.png,caf\xe9\n".encode("cp1252")})
    with pytest.raises(ValueError, match=r"metadata\.csv is not UTF-8"):
        load(str(tmp_path))
    fill(tmp_path, {"metadata.csv": b"name,text\n0.png,a\n"})
    with pytest.raises(ValueError, match=r"metadata\.csv has no column of file names, only 'name', 'text': name it"):
        load(str(tmp_path))
    fill(tmp_path, {"metadata.jsonl": b"{}"})
    with pytest.raises(ValueError, match=r"holds metadata\.csv and metadata\.jsonl: keep one"):
        load(str(tmp_path))


def test_one_row_without_caption_takes_no_part_in_retrieval(tmp_path, caplog):
    fill(tmp_path, {f"{n}.png": encoded(n) for n in range(5)} | {f"{n}.txt": b"x" for n in range(5)} | {"3.txt": b" "})
    data = select(str(tmp_path))
    assert data.captions == [["x"], ["x"], ["x"], [], ["x"]]
    assert "1 of 5 images in " in caplog.text
    assert "3.png" in caplog.text
    fill(tmp_path, {f"{n}.txt": b"" for n in range(3)})
    with pytest.raises(ValueError, match="4 of 5 rows have no caption in 'caption'"):
        select(str(tmp_path))


def test_tables_in_a_folder(tmp_path):
    fill(tmp_path / "csv", {"0.csv": b"caption,label\na,1\n", "1.csv": b"caption,label\nb,2\n", "README.md": b"x"})
    assert load(f"{tmp_path}/csv")["caption"][:] == ["a", "b"]
    fill(tmp_path / "split", {"train/0.csv": b"caption\na\n", "test/0.csv": b"caption\nb\n"})
    assert load(f"{tmp_path}/split", split="train")["caption"][:] == ["a"]
    assert load(f"{tmp_path}/split")["caption"][:] == ["b"]
    fill(tmp_path / "photos", {"cat/0.png": encoded(), "dog/1.png": encoded(1), "info.json": b"{}"})
    assert load(f"{tmp_path}/photos")["label"][:] == [0, 1]


# ---- any folder

NAMES = st.sampled_from(["a", "b", "img.0", "img.1", "d/a", "d/img.0", "._a", "train/a", "metadata"])
SUFFIXES = st.sampled_from([".png", ".PNG", ".txt", ".TXT", ".json", ".csv", ".jsonl", ".md", ".png.txt", ""])
CONTENTS = st.sampled_from(
    [
        encoded(1),
        b"",
        b"a caption",
        b"caf\xe9",
        b"\xef\xbb\xbfa\nb",
        b"\xff\xfea\0",
        b'{"caption": "x"}',
        b"[1]",
        b"file_name,caption\na.png,x\n",
        b'file_name,caption\n"a.png',
        b'{"file_name": "a.png", "caption": ["x"]}\n{"file_name": 3}\n',
    ]
)


@given(files=st.dictionaries(st.tuples(NAMES, SUFFIXES).map("".join), CONTENTS, max_size=8))
@settings(max_examples=30)
def test_any_folder_is_read_or_named(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fill(folder, files)
    before = sorted(path for path in folder.rglob("*"))
    images = sorted(name for name in files if name.lower().endswith(".png") and "._" not in name)
    rows = None
    with suppress(ValueError, OSError):
        rows = read_folder(folder)
    assert sorted(path for path in folder.rglob("*")) == before
    if rows is None:
        return
    found = [row["path"] for row in rows.data.column("image").to_pylist() if row is not None]
    if not any("metadata" in name and name.endswith((".csv", ".json", ".jsonl")) for name in files):
        assert sorted(found) == sorted(f"{folder}/{name}" for name in images)
        captions = rows["caption"][:] if "caption" in rows.column_names else [[] for _ in images]
        assert all(isinstance(text, str) and text.strip() for own in captions for text in own)
