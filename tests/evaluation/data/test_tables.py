"""Tables that people write: the same rows from every form of them, and the line named that cannot be right."""

import csv
import gzip
import io
import json
from contextlib import suppress

import datasets
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.data import columns, load
from modeling_siglip_ext.evaluation.data.tables import read_csv, read_json, read_table
from support.shards import encoded


CAPTIONS = ["a caf\u00e9, red", 'the "best" dog', "NA"]


@pytest.fixture
def images(tmp_path):
    """A folder with three images in a subfolder."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(number))
    return tmp_path


def written(kind: str, rows: list[dict]) -> str:
    """Rows as a text of some kind."""
    if kind == "json":
        return json.dumps(rows)
    if kind == "columns":
        return json.dumps({name: [row[name] for row in rows] for name in rows[0]})
    if kind == "wrapped":
        return json.dumps({"version": 1, "data": rows}, indent=1)
    if kind == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter={"tsv": "\t", "semicolons": ";"}.get(kind, ","))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMS = {
    "x.csv": "csv",
    "x.CSV": "csv",
    "x.tsv": "tsv",
    "tabs.csv": "tsv",
    "semicolons.csv": "semicolons",
    "x.json": "json",
    "columns.json": "columns",
    "wrapped.json": "wrapped",
    "lines.json": "jsonl",
    "x.jsonl": "jsonl",
    "x.ndjson": "jsonl",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name, encoding, images, monkeypatch):
    rows = [{"filepath": f"photos/{n}.png", "title": CAPTIONS[n], "label": n} for n in range(3)]
    text = written(FORMS[name], rows)
    path = images / (f"{name}.gz" if encoding == "gzip" else name)
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    monkeypatch.chdir("/")  # paths are relative to the file
    found = load(str(path))
    assert columns.column(found, None, columns.IMAGE_COLUMNS, "image") == "filepath"
    assert columns.captions(found, columns.column(found, None, columns.CAPTION_COLUMNS, "caption")) == [
        [caption] for caption in CAPTIONS
    ]
    assert columns.labels(found, "label") == [[0], [1], [2]]
    assert [row["filepath"].getpixel((0, 0))[0] for row in found] == [0, 1, 2]
    assert load(str(path))._fingerprint == found._fingerprint
    assert [row["filepath"].getpixel((0, 0))[0] for row in load(f"file://{path}")] == [0, 1, 2]
    (images / "photos" / "1.png").write_bytes(encoded(200))
    assert load(str(path))._fingerprint != found._fingerprint, "another image under the same name"


def test_parquet_of_paths(images):
    rows = datasets.Dataset.from_dict({"image": [f"photos/{n}.png" for n in range(3)], "caption": CAPTIONS})
    rows.to_parquet(images / "odd [1] {2}.parquet")
    found = load(str(images / "odd [1] {2}.parquet"))
    assert found["caption"][:] == CAPTIONS
    assert [row["image"].getpixel((0, 0))[0] for row in found] == [0, 1, 2]
    undecoded = found.cast_column("image", datasets.Image(decode=False))
    for number in range(2):
        undecoded.select([number]).to_parquet(images / f"p-{number}.parquet")
    assert load(f"{images}/p-{{0..1}}.parquet")["caption"][:] == CAPTIONS[:2]
    assert load(f"{images}/p-*.parquet")["caption"][:] == CAPTIONS[:2]


def test_addresses_stay_as_they_are(tmp_path):
    address = "https://localhost:1/a.jpg?signature=a%2Fb&x={1..2}"
    (tmp_path / "x.csv").write_text(f"url,caption\n{address},a cat\n")
    found = columns.images(load(str(tmp_path / "x.csv")), "url")
    assert found[0]["url"]["path"] == address


def test_images_that_are_not_there(images, caplog):
    (images / "x.csv").write_text("path,text\nphotos/0.png,a\nphotos/7.png,b\nphotos\\1.png,c\n")
    found = load(str(images / "x.csv"))
    assert found.select([0, 2])[1]["path"].getpixel((0, 0))[0] == 1, "as Windows writes paths"
    assert "1 of 3 images in 'path' are not there, e.g. " in caplog.text
    (images / "y.csv").write_text("path,text\n7.png,a\n8.png,b\n")
    with pytest.raises(FileNotFoundError, match=r"none of its 2 images in 'path' is there, e\.g\. .*7\.png: paths"):
        load(str(images / "y.csv"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "x.csv",
            b"image,caption\na.jpg,a cat, red\n",
            r"x\.csv, line 2: 3 values for 2 columns.*',' in it goes in",
        ),
        ("x.csv", b'image,caption\na.jpg,"a cat\nb.jpg,"red"\n', r"x\.csv, line \d: .*double quotes"),
        ("x.csv", b'image,caption\na.jpg,"a cat\n', r"x\.csv, line 2: unexpected end of data"),
        ("x.csv", b"image,image\na,b\n", "several columns named 'image'"),
        ("x.csv", b"image,caption\n", "x.csv has no rows"),
        ("x.csv", b"", "x.csv has no rows"),
        (
            "x.csv",
            "image,caption\na,caf\xe9\n".encode("cp1252"),
            r"x\.csv is not UTF-8 \(byte 0xe9\): save it as UTF-8",
        ),
        ("x.csv.gz", b"image,caption\na,b\n", r"x\.csv\.gz is damaged: BadGzipFile"),
        ("x.csv.bz2", b"image,caption\na,b\n", r"x\.csv\.bz2 is damaged: OSError"),
        ("x.csv.xz", b"image,caption\na,b\n", r"x\.csv\.xz is damaged: LZMAError"),
        ("x.csv.gz", gzip.compress(b"image,caption\na,b\n", mtime=0)[:-6], r"x\.csv\.gz is damaged: EOFError"),
        ("x.jsonl", b'{"image": "a"}\n{"image": \n', r"x\.jsonl, line 2: no JSON"),
        ("x.json", b'[{"image": "a"},\n {"image": }]', r"x\.json, line 2: no JSON"),
        ("x.json", b"", "has no rows"),
        ("x.json", b"[]", "has no rows"),
        ("x.json", b"[1, 2]", "row 0 is no mapping of names to values, but 1"),
        ("x.json", b"3", "holds no rows, but a int"),
        ("x.json", b"[" * 100_000, "nested too deeply|no JSON"),
        ("x.json", b'{"images": [{"id": 1}], "annotations": [{"id": 1}]}', r"several tables \(images, annotations\)"),
        ("x.json", '[{"image": "caf\xe9"}]'.encode("cp1252"), r"x\.json is not UTF-8"),
        ("x.parquet", b"PAR1", r"x\.parquet cannot be read"),
        ("x.parquet", b"", r"x\.parquet cannot be read"),
        ("x.zip", b"PK", r"x\.zip is of no known kind; known are \.parquet, \.arrow, \.csv"),
        ("x.parquet.gz", b"x", "of no known kind"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=reason):
        load(str(tmp_path / name))


def test_separators_are_given_or_found(tmp_path):
    (tmp_path / "x.csv").write_text("caption^label\na, b; c^3\n")
    assert load(str(tmp_path / "x.csv"), separator="^")[0] == {"caption": "a, b; c", "label": 3}
    (tmp_path / "y.csv").write_text("caption\tlabel\na, b; c\t3\n")
    assert load(str(tmp_path / "y.csv"), separator="\\t")[0] == {"caption": "a, b; c", "label": 3}
    for wrong in ("", ",,", '"', "\n"):
        with pytest.raises(ValueError, match="separator must be one character"):
            load(str(tmp_path / "x.csv"), separator=wrong)
    (tmp_path / "x.json").write_text('[{"caption": "a"}]')
    with pytest.raises(ValueError, match=r"separator is of CSV files; .*x\.json is none"):
        load(str(tmp_path / "x.json"), separator=";")
    with pytest.raises(ValueError, match="a configuration is of data sets on the Hub"):
        load(str(tmp_path / "x.json"), config="de")


def test_values_of_a_rarer_type_are_left_empty_and_named(tmp_path, caplog):
    rows = [{"caption": "a"}, {"caption": ["b", "c"]}, {"caption": 7}, {"label": 2, "caption": None}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load(str(tmp_path / "x.jsonl"))
    assert found["label"][:] == [None, None, None, 2]
    assert found["caption"][:] in (["a", None, None, None], [None, ["b", "c"], None, None])
    assert "values of 'caption' are no " in caplog.text
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    assert load(str(tmp_path / "y.jsonl"))["caption"][:] == [["a"], ["b", "c"]]


# ---- any rows, in any form

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"name": TEXTS, "caption": TEXTS}), min_size=1, max_size=6)
KINDS = st.sampled_from(["csv", "tsv", "semicolons", "json", "jsonl", "wrapped"])


@given(rows=ROWS, kind=KINDS, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@example(rows=[{"name": "", "caption": "\u2028"}], kind="jsonl", encoding="utf-8")
@settings(max_examples=25)
def test_what_was_written_is_read(rows, kind, encoding, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / f"x.{kind if kind in ('csv', 'tsv', 'jsonl') else 'txt'}"
    path.write_bytes(written(kind, rows).encode(encoding))
    found = read_json(str(path)) if "json" in kind or kind == "wrapped" else read_csv(str(path))
    for name in ("name", "caption"):
        expected = [row[name] for row in rows]
        if kind in ("csv", "semicolons"):  # blanks after a separator are none of the value, unless it is quoted
            got = [
                value if value in (mine, mine.lstrip(" ")) else None
                for value, mine in zip(_texts(found, name), expected)
            ]
            assert None not in got
        else:
            assert _texts(found, name) == expected


def _texts(table, name: str) -> list[str]:
    return ["" if value is None else str(value) for value in table[name].to_pylist()]


@given(
    rows=ROWS,
    kind=st.sampled_from(["csv", "json", "jsonl"]),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
@settings(max_examples=25)
def test_a_damaged_table_is_read_or_named(rows, kind, cut, changes, tmp_path_factory):
    content = bytearray(written(kind, rows).encode())
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("fuzz") / f"x.{kind}"
    path.write_bytes(content[: int(cut * len(content))])
    with suppress(ValueError):
        assert len(read_table(str(path), "csv" if kind == "csv" else "json"))
    assert [one.name for one in path.parent.iterdir()] == [path.name]
