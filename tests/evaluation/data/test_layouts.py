"""Every layout gives the same rows; what is missing is named with what is there."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_siglip_ext.evaluation.data import columns, load
from modeling_siglip_ext.evaluation.data.classes import lines_beside
from modeling_siglip_ext.evaluation.data.languages import select_languages, xm3600
from support.images import noise


def picture(seed: int) -> Image.Image:
    return noise(8, 8, seed)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rows() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    return datasets.Dataset.from_dict({"image": images, "label": [0, 0, 1, 1]}, features=features)


def write_tar(path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def check(found: datasets.Dataset, image: str = "image", label: str = "label") -> None:
    assert columns.labels(found, columns.column(found, None, columns.LABEL_COLUMNS, "label")) == [[0], [0], [1], [1]]
    assert columns.column(found, None, columns.IMAGE_COLUMNS, "image") == image
    for i, row in enumerate(found):
        assert np.array_equal(np.asarray(row[image].convert("RGB")), np.asarray(picture(i)))


def test_local_layouts(rows, tmp_path):
    rows.to_parquet(tmp_path / "one.parquet")
    check(load(str(tmp_path / "one.parquet")))
    (tmp_path / "parts" / "test").mkdir(parents=True)
    rows.select([0, 1]).to_parquet(tmp_path / "parts" / "test" / "0.parquet")
    rows.select([2, 3]).to_parquet(tmp_path / "parts" / "test" / "1.parquet")
    check(load(str(tmp_path / "parts")))
    rows.save_to_disk(tmp_path / "saved")
    check(load(str(tmp_path / "saved")))
    datasets.DatasetDict({"train": rows.select([0]), "validation": rows}).save_to_disk(tmp_path / "splits")
    check(load(str(tmp_path / "splits")))
    assert len(load(str(tmp_path / "splits"), split="train")) == 1
    for i in range(4):
        folder = tmp_path / "folder" / ["cat", "dog"][i // 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(i))
    found = load(str(tmp_path / "folder"))
    check(found)
    assert columns.label_names(found, "label") == ["cat", "dog"]
    assert columns.file_names(found, "image") == ["0.png", "1.png", "2.png", "3.png"]


def test_the_webdataset_layout_of_clip_benchmark(tmp_path):
    for shard in range(2):
        members = {}
        for i in (2 * shard, 2 * shard + 1):
            members |= {f"s{i}.cls": str(i // 2).encode(), f"s{i}.png": png(i)}
        write_tar(tmp_path / "test" / f"{shard}.tar", members)
    (tmp_path / "test" / "nshards.txt").write_text("2")
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    found = load(str(tmp_path))
    check(found, label="cls")
    assert lines_beside(str(tmp_path), "classnames.txt") == ["cat", "dog"]
    assert lines_beside(str(tmp_path), "other.txt") is None
    assert columns.file_names(found, "image") == ["s0", "s1", "s2", "s3"]


def test_captions_of_every_form(tmp_path):
    write_tar(tmp_path / "test" / "0.tar", {"a.png": png(0), "a.txt": b"one\ntwo", "b.png": png(1), "b.txt": b"three"})
    found = load(str(tmp_path))
    assert columns.captions(found, columns.column(found, None, columns.CAPTION_COLUMNS, "caption")) == [
        ["one", "two"],
        ["three"],
    ]
    lists = datasets.Dataset.from_dict({"captions": [["a", "b"], ["c"]]})
    assert columns.captions(lists, "captions") == [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match="row 1 has no caption in 'captions'"):
        columns.captions(datasets.Dataset.from_dict({"captions": [["a"], [""]]}), "captions")
    with pytest.raises(ValueError, match="row 0: captions is 3, neither a caption"):
        columns.captions(datasets.Dataset.from_dict({"captions": [3]}), "captions")


def test_what_is_missing_is_named(rows, tmp_path):
    with pytest.raises(ValueError, match=r"no caption column 'caption'.*it has image, label.*--caption_column"):
        columns.column(rows, None, columns.CAPTION_COLUMNS, "caption")
    with pytest.raises(ValueError, match="no label column 'kind'"):
        columns.column(rows, "kind", columns.LABEL_COLUMNS, "label")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load("./nowhere")
    (tmp_path / "data.xyz").write_text("")
    with pytest.raises(ValueError, match=r"no known kind; known are \.parquet"):
        load(str(tmp_path / "data.xyz"))
    datasets.Dataset.from_dict({"label": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        load(str(tmp_path / "empty.parquet"))
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="no split 'test'; there are train"):
        load(str(tmp_path / "splits"), split="test")
    with pytest.raises(ValueError, match="neither a class index"):
        columns.labels(datasets.Dataset.from_dict({"label": [0.5]}), "label")


def test_crossmodal_3600_as_released(tmp_path):
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(2):
        (tmp_path / "images" / f"k{i}.jpg").write_bytes(png(i))
        captions = {lang: {"caption": [f"{lang} {i}"] * (i + 1), "caption/tokenized": []} for lang in ("de", "quz")}
        lines.append(json.dumps({"image/key": f"k{i}", "image/locale": "de", **captions}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    paths, captions = xm3600(tmp_path)
    assert [path.rsplit("/", 1)[1] for path in paths] == ["k0.jpg", "k1.jpg"]
    assert captions == {"de": [["de 0"], ["de 1", "de 1"]], "quz": [["quz 0"], ["quz 1", "quz 1"]]}
    data, of_language = select_languages(str(tmp_path), ["de"], limit=1)
    assert (len(data.images), of_language) == (1, {"de": [["de 0"]]})
    before = select_languages(str(tmp_path))[0].provenance
    (tmp_path / "images" / "k1.jpg").write_bytes(png(7) + b"mended")
    assert select_languages(str(tmp_path))[0].provenance != before
    for name in ("config", "split", "separator", "image_column"):
        with pytest.raises(ValueError, match=f"{name} has no effect with a folder of Crossmodal-3600"):
            select_languages(str(tmp_path), **{name: "x"})
    (tmp_path / "images" / "k1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"k1\.jpg, named in captions\.jsonl"):
        xm3600(tmp_path)
