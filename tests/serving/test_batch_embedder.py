"""Rows through engines: the vectors of `encode_images` and `encode_texts`, each row once, broken ones named."""

import io
import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_siglip_ext import SiglipExtModel, SiglipExtNaflexImageProcessor, encode_images, encode_texts
from modeling_siglip_ext.serving import BatchEmbedder
from support.images import noise
from support.models import TINY_NAFLEX, make_config, make_processor
from support.processes import run_worker


WORKER = Path(__file__).with_name("worker_ray.py")
IMAGES = [noise(20 + i, 30, seed=i) for i in range(40)]
BROKEN = 22


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


CELLS = [png(image) if i != BROKEN else b"broken" for i, image in enumerate(IMAGES)]


@pytest.fixture(scope="module")
def parts():
    return SiglipExtModel(make_config({"vocab_size": 300})).eval(), make_processor(["a picture"], 8)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    for part in parts:
        part.save_pretrained(folder / "model")
    rows = {"number": range(len(CELLS)), "image": [{"bytes": cell, "path": None} for cell in CELLS]}
    features = datasets.Features({"number": datasets.Value("int64"), "image": datasets.Image()})
    datasets.Dataset.from_dict({**rows, "number": list(rows["number"])}, features).to_parquet(folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(parts) -> np.ndarray:
    return encode_images(*parts, CELLS)


def check(found: np.ndarray, errors: list[str], expected: np.ndarray) -> None:
    assert np.isnan(expected[BROKEN]).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [place for place, error in enumerate(errors) if error] == [BROKEN]
    assert "not an image that PIL knows" in errors[BROKEN]


@pytest.mark.slow
def test_two_workers_of_ray_one_killed_in_between(folder, expected):
    pytest.importorskip("ray", reason="ray is not installed (240 MB): pip install 'siglip-ext[ray]'")
    found = json.loads(run_worker(WORKER, folder, timeout=180).splitlines()[-1])
    assert sorted(number for number, _, _ in found["rows"]) == list(range(len(CELLS))), "nothing lost, nothing twice"
    rows = sorted(found["rows"])
    check(np.array([row[1] for row in rows]), [row[2] for row in rows], expected)
    assert len(found["loaded"]) == 3, "two workers, and the one in place of the killed; each loads the model once"
    assert found["killed"] in found["loaded"]


def test_a_map_of_datasets(folder, expected, tmp_path):
    rows = datasets.Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(tmp_path))
    rows = rows.cast_column("image", datasets.Image(decode=False))
    embedder = BatchEmbedder(str(folder / "model"), device="cpu", workers=0)
    found = rows.map(embedder, batched=True, batch_size=6)
    assert found.column_names == ["number", "image", "embedding", "error"]
    assert found[3]["image"] == rows[3]["image"]
    check(np.array(found["embedding"]), found["error"], expected)
    assert found.features["embedding"].feature.dtype == "float32"
    streamed = list(rows.to_iterable_dataset().map(embedder, batched=True, batch_size=6))
    check(np.array([row["embedding"] for row in streamed]), [row["error"] for row in streamed], expected)


@pytest.mark.parametrize(
    "cells",
    [CELLS, np.array(CELLS, dtype=object), [{"bytes": cell, "path": None} for cell in CELLS]],
    ids=["list", "array", "rows"],
)
def test_batches_by_hand(cells, folder, expected):
    batch = {"image": cells, "number": np.arange(len(CELLS))}
    found = BatchEmbedder(str(folder / "model"), device="cpu", batch_size=7)(batch)
    assert list(found) == ["image", "number", "embedding", "error"]
    assert found["embedding"].dtype == np.float32
    check(found["embedding"], found["error"], expected)
    same = np.stack([np.asarray(IMAGES[0])] * 3)
    found = BatchEmbedder(str(folder / "model"), column="pixels", normalize=False)({"pixels": same})
    assert found["embedding"].shape == (3, 32)
    assert abs(np.linalg.norm(found["embedding"][0]) - 1) > 0.01
    assert found["error"].tolist() == [""] * 3


def test_texts(parts, folder):
    embedder = BatchEmbedder(str(folder / "model"), "text", "caption", batch_size=2)
    found = embedder({"caption": ["a picture", None, "another", 3, "b\ud800"]})
    assert found["error"].tolist()[:4] == ["", "there is no text", "", "a int is no text"]
    assert "has no character in place 1" in found["error"][4]
    good = encode_texts(*parts, ["a picture", "another"])
    np.testing.assert_allclose(found["embedding"][[0, 2]], good, atol=1e-6)
    assert np.isnan(found["embedding"][[1, 3, 4]]).all()


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_empty_batch_has_the_columns_of_any_other(kind, folder):
    found = BatchEmbedder(str(folder / "model"), kind)({kind: []})
    assert (found["embedding"].shape, found["error"].shape) == ((0, 32), (0,))


def test_a_naflex_model(tmp_path):
    model = SiglipExtModel(make_config(vision={**TINY_NAFLEX, "image_size": None})).eval()
    processor = make_processor(["a"], 8)
    processor.image_processor = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    options = {"max_num_patches": 9, "upscale": False, "batch_tokens": 40}
    found = BatchEmbedder(str(tmp_path / "model"), **options)({"image": IMAGES[:5]})
    np.testing.assert_allclose(found["embedding"], encode_images(model, processor, IMAGES[:5], **options), atol=1e-6)


def test_an_exported_model(exported):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    source, folder = exported("fixed")
    found = BatchEmbedder(str(folder), backend="onnx")({"image": IMAGES[:5]})["embedding"]
    expected = BatchEmbedder(str(source), device="cpu")({"image": IMAGES[:5]})["embedding"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_is_pickled_is_small_and_follows_the_model(folder):
    embedder = BatchEmbedder(str(folder / "model"))
    first = pickle.dumps(embedder)
    embedder({"image": IMAGES[:1]})
    assert embedder.loaded is not None
    assert pickle.dumps(embedder) == first
    assert pickle.loads(first).loaded is None
    weights = folder / "model" / "model.safetensors"
    os.utime(weights, ns=(0, 0))
    assert pickle.dumps(BatchEmbedder(str(folder / "model"))) != first


def test_mistakes_are_named(folder):
    with pytest.raises(ValueError, match="kind='video'; choose 'image' or 'text'"):
        BatchEmbedder("anything", "video")
    with pytest.raises(ValueError, match="the rows have no column 'image'; they have picture, number: give column="):
        BatchEmbedder(str(folder / "model"))({"picture": [], "number": []})
    table = datasets.Dataset.from_dict({"image": ["a"], "number": [1]}).to_pandas()
    with pytest.raises(TypeError, match="a batch is a DataFrame, not a mapping of columns: leave out batch_format"):
        BatchEmbedder(str(folder / "model"))(table)
    one = np.zeros((20, 30, 3), np.uint8)
    for kind, cell in (("text", "a cat"), ("image", "cat.jpg"), ("image", IMAGES[0]), ("image", one), ("image", None)):
        with pytest.raises(TypeError, match=f"'{kind}' holds one input, not a batch: take batched=True"):
            BatchEmbedder(str(folder / "model"), kind)({kind: cell})
    for name in ("embedding", "error"):
        with pytest.raises(ValueError, match=f"have a column '{name}' already, which would be lost"):
            BatchEmbedder(str(folder / "model"))({"image": IMAGES[:1], name: [1]})
    with pytest.raises(FileNotFoundError, match=r"\./nowhere is no folder"):
        BatchEmbedder("./nowhere")({"image": []})
