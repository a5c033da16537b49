"""`select` gives the same data from every kind of source, and the benchmark's settings where one is named."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_siglip_ext.evaluation import select
from modeling_siglip_ext.evaluation.data import select_languages
from modeling_siglip_ext.evaluation.prompts import imagenet_classes, templates


NAMES = ["cat", "red_dog"]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(label: str = "label", image: str = "image", **columns) -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    dataset = datasets.Dataset.from_dict({image: images, label: [0, 0, 1, 1]}, features=features)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


@pytest.fixture
def hub(monkeypatch):
    """What `datasets` is asked for, and rows for every answer."""
    asked, answer = [], {}

    def load_dataset(*names, **options):
        asked.append((names, options))
        return answer["rows"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked, answer


def check_pictures(data) -> None:
    """Undecoded, and those that were put in."""
    for i, row in enumerate(data.images):
        assert row.keys() == {data.image_column}
        pixels = np.asarray(Image.open(io.BytesIO(row[data.image_column]["bytes"])))
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(png(i)))))


def test_a_folder_of_folders_is_for_classification(tmp_path):
    for i in range(4):
        folder = tmp_path / "photos" / NAMES[i // 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(i))
    data = select(tmp_path / "photos")
    assert (data.labels, data.captions) == ([[0], [0], [1], [1]], None)
    assert data.classes.names == ["cat", "red dog"]
    assert (data.classes.names_from, data.classes.templates_from) == ("the dataset", "clip_paper")
    assert data.provenance.name == "photos"
    assert data.provenance.columns == {"image": "image", "label": "label", "labels_file": None}
    (tmp_path / "photos" / "zeroshot_classification_templates.txt").write_text("my {c}\n")
    assert select(tmp_path / "photos").classes.templates == ["my {}"]


def test_parquet_with_captions_is_for_retrieval(tmp_path):
    texts = [["one", "two"], ["three"], ["four"], ["five"]]
    rows(captions=texts).to_parquet(tmp_path / "rows.parquet")
    data = select(str(tmp_path / "rows.parquet"), limit=3)
    assert (data.captions, data.labels, data.classes) == (texts[:3], None, None)
    assert data.texts == ["one", "two", "three", "four"]
    assert data.provenance.rows == len(data.images) == 3
    assert data.provenance.columns == {"image": "image", "caption": "captions"}
    check_pictures(data)
    as_classes = select(str(tmp_path / "rows.parquet"), task="zero-shot", class_names=["a", "b"], templates=["{}!"])
    assert (as_classes.classes.names, as_classes.classes.templates) == (["a", "b"], ["{}!"])
    assert select(str(tmp_path / "rows.parquet"), label_column="label").labels is not None


def test_a_name_on_the_hub(hub):
    asked, answer = hub
    answer["rows"] = rows(image="img", text=["a", "b", "c", "d"])
    data = select("user/set", config="de", image_column="img")
    assert asked == [(("user/set", "de"), {"split": "test"})]
    assert data.captions == [["a"], ["b"], ["c"], ["d"]]
    assert (data.provenance.source, data.provenance.config, data.provenance.split) == ("user/set", "de", None)
    check_pictures(data)


def test_rows_that_are_loaded_already():
    data = select(rows(caption=list("abcd")))
    assert data.texts == list("abcd")
    check_pictures(data)


def test_a_known_benchmark_brings_columns_classes_and_templates(hub):
    asked, answer = hub
    answer["rows"] = rows("fine_label", "img")
    data = select(benchmark="cifar100")
    assert asked == [(("uoft-cs/cifar100", None), {"split": "test"})]
    assert data.image_column == "img"
    assert data.classes.templates == templates("clip_paper")
    assert (data.provenance.benchmark, data.provenance.split) == ("cifar100", "test")
    answer["rows"] = rows()
    data = select(benchmark="imagenet", task="zero-shot")
    assert data.classes.names == imagenet_classes()
    assert data.classes.central_crop
    assert select(benchmark="imagenet", task="knn", split="train").label_names == NAMES
    assert asked[-1] == (("ILSVRC/imagenet-1k", None), {"split": "train"})


def test_a_copy_of_a_benchmark_has_columns_and_splits_of_its_own(tmp_path):
    rows("cls", "png").to_parquet(tmp_path / "copy.parquet")
    data = select(tmp_path / "copy.parquet", benchmark="cifar100")
    assert (data.image_column, data.provenance.split) == ("png", None)
    assert data.labels == [[0], [0], [1], [1]]


def test_labels_from_a_file_and_through_a_map(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps([0, [0, 1], [], 1]))
    data = select(rows(), task="zero-shot", labels_file=str(tmp_path / "labels.json"), class_names=["a", "b"])
    assert data.labels == [[0], [0, 1], [], [1]]
    (tmp_path / "map.json").write_text(json.dumps({"red_dog": "golden"}))
    names = ["silver", "golden"]
    data = select(rows(), task="zero-shot", label_map=str(tmp_path / "map.json"), class_names=names)
    assert (data.labels, data.classes.names) == ([[], [], [0], [0]], ["golden"])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="give --dataset or --benchmark"):
        select()
    with pytest.raises(ValueError, match="'nothing' is unknown; known are imagenet"):
        select(benchmark="nothing")
    with pytest.raises(ValueError, match="unknown to retrieval; known are coco"):
        select(benchmark="pets", task="retrieval")
    with pytest.raises(ValueError, match="no task 'classification'; there are retrieval, threshold, zero-shot, few-"):
        select(rows(), task="classification")
    with pytest.raises(ValueError, match="no caption column"):
        select(rows(), task="retrieval")
    with pytest.raises(ValueError, match="has no class names"):
        select(rows().cast_column("label", datasets.Value("int64")))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        select("./nowhere")


def test_languages_are_columns(tmp_path):
    rows(de=list("abcd"), sw=["e", "", "f", "g"]).to_parquet(tmp_path / "rows.parquet")
    data, of_language = select_languages(str(tmp_path / "rows.parquet"), ["de", "sw"])
    assert of_language == {"de": [["a"], ["b"], ["c"], ["d"]], "sw": [["e"], [], ["f"], ["g"]]}
    check_pictures(data)
    with pytest.raises(ValueError, match="no columns fr; it has"):
        select_languages(str(tmp_path / "rows.parquet"), ["fr"])
