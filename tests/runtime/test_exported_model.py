"""`ExportedModel`: without torch, in the place of a model, and what it says of folders that are none."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from modeling_siglip_ext import SiglipExtModel, encode_images, encode_texts
from siglip_ext_runtime import ExportedModel, is_exported, read_settings


WORKER = Path(__file__).parent / "worker_without_torch.py"
TEXTS = ["red circle", "blue square", "green stripes"]


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = random.integers(20, 90, size=(count, 2))
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def copy(exported, tmp_path):
    """An exported folder to be damaged."""
    return Path(shutil.copytree(exported("fixed")[1], tmp_path / "copy"))


def test_a_process_without_torch_gives_the_models_logits(exported, tmp_path):
    folder, out = exported("fixed")
    arrays = {"pixel_values": np.random.randn(2, 3, 32, 32).astype(np.float32)}
    arrays["input_ids"] = np.random.randint(0, 300, (3, 16))
    np.savez(tmp_path / "inputs.npz", **arrays)
    command = [sys.executable, str(WORKER), str(out), str(tmp_path / "inputs.npz")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    with torch.no_grad():
        wanted = SiglipExtModel.from_pretrained(folder).eval()(**{k: torch.from_numpy(v) for k, v in arrays.items()})
    assert found["type"] == "ndarray"
    np.testing.assert_allclose(found["scores"], wanted.logits_per_image, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "naflex"])
def test_encode_takes_it_like_a_model(exported, kind):
    folder, out = exported(kind)
    model, wanted = ExportedModel(out), SiglipExtModel.from_pretrained(folder).eval()
    processor, images = AutoProcessor.from_pretrained(out), pictures(5)
    np.testing.assert_allclose(
        encode_images(model, processor, images), encode_images(wanted, processor, images), atol=1e-6
    )
    np.testing.assert_allclose(
        encode_texts(model, processor, TEXTS, normalize=False),
        encode_texts(wanted, processor, TEXTS, normalize=False),
        rtol=1e-4,
        atol=1e-5,
    )
    if kind == "naflex":
        options = {"max_num_patches": 40, "upscale": False, "batch_tokens": 100}
        np.testing.assert_allclose(
            encode_images(model, processor, images, **options),
            encode_images(wanted, processor, images, **options),
            atol=1e-6,
        )


def test_the_pipeline_takes_it_like_a_model(exported, caplog):
    folder, out = exported("fixed")
    processor, images = AutoProcessor.from_pretrained(out), pictures(3)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    models = ExportedModel(out), SiglipExtModel.from_pretrained(folder).eval()
    found, wanted = (
        pipeline("zero-shot-image-classification", model=model, device="cpu", **parts)(images, candidate_labels=TEXTS)
        for model in models
    )
    assert "not supported" not in caplog.text
    for mine, theirs in zip(found, wanted):
        assert [row["label"] for row in mine] == [row["label"] for row in theirs]
        assert [row["score"] for row in mine] == pytest.approx([row["score"] for row in theirs], rel=1e-4)


def test_threads_share_a_model(exported):
    model, ids = ExportedModel(exported("fixed")[1]), torch.randint(300, (6, 16))
    wanted = ExportedModel(exported("fixed")[1]).get_text_features(ids).embeds
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.get_text_features(ids).embeds, range(16)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


def test_settings_are_those_of_the_checkpoint(exported):
    folder, out = exported("fixed")
    settings, model = read_settings(out), SiglipExtModel.from_pretrained(folder)
    assert settings.logit_scale == model.logit_scale.item() == ExportedModel(out).logit_scale.item()
    assert settings.logit_bias == model.logit_bias.item() == ExportedModel(out).logit_bias.item()
    assert settings.loss_type == "sigmoid"
    assert is_exported(out)
    assert not is_exported(folder)


def test_its_fingerprint_is_that_of_its_weights(exported, copy):
    original = ExportedModel(exported("fixed")[1]).fingerprint()
    assert ExportedModel(copy).fingerprint() == original
    (copy / "README.md").write_text("another card")
    assert ExportedModel(copy).fingerprint() == original
    damaged = bytearray((copy / "text_model.onnx").read_bytes())
    damaged[-1] ^= 1
    (copy / "text_model.onnx").write_bytes(damaged)
    assert ExportedModel(copy).fingerprint() != original


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda out: (out / "export.json").unlink(), FileNotFoundError, "to-onnx"),
        (lambda out: (out / "export.json").write_text("{"), ValueError, "damaged"),
        (lambda out: (out / "export.json").write_text('{"format": 99}'), ValueError, "format 99"),
        (lambda out: (out / "export.json").write_text('{"format": 1}'), ValueError, "damaged"),
        (lambda out: (out / "text_model.onnx").unlink(), FileNotFoundError, "text_model.onnx"),
        (lambda out: shutil.rmtree(out), FileNotFoundError, "not a folder"),
    ],
)
def test_a_folder_that_is_none_is_said_when_it_is_opened(copy, change, error, message):
    change(copy)
    with pytest.raises(error, match=message):
        ExportedModel(copy)


def test_a_damaged_file_is_said_when_it_is_used(copy):
    (copy / "text_model.onnx").write_bytes(b"no model")
    model = ExportedModel(copy)
    with pytest.raises(ValueError, match=r"text_model\.onnx cannot be read"):
        model.get_text_features(torch.zeros(1, 16, dtype=torch.long))


def test_wrong_inputs_are_errors_of_values(exported):
    model = ExportedModel(exported("fixed")[1])
    with pytest.raises(ValueError, match="does not take"):
        model.get_text_features(torch.zeros(1, 15, dtype=torch.long))
    with pytest.raises(ValueError, match="takes whole numbers for input_ids"):
        model.get_text_features(torch.full((1, 16), 0.7))
    for ids in (np.full((2, 16), 300), -np.ones((2, 16), np.int64)):  # an engine takes them for other ones
        for backend in ("onnx", "openvino"):
            with pytest.raises(ValueError, match=r"text_model\.onnx does not take these inputs: tokens are 0 to 299"):
                ExportedModel(model.folder, backend).get_text_features(ids)
    with pytest.raises(ValueError, match="spatial_shapes"):
        ExportedModel(exported("naflex")[1]).get_image_features(np.zeros((1, 4, 48), np.float32), np.ones((1, 4)))
    naflex, patches = ExportedModel(exported("naflex")[1]), np.zeros((1, 4, 48), np.float32)
    for mask, grid in (([1, 1, 1, 1], [2, 3]), ([1, 1, 1, 0], [2, 2]), ([0, 0, 0, 0], [0, 4]), ([0, 1, 1, 0], [1, 2])):
        with pytest.raises(ValueError, match=r"vision_model\.onnx does not take these inputs: image 0 has a grid"):
            naflex.get_image_features(patches, np.array([mask]), np.array([grid]))
    with pytest.raises(ValueError, match="choose one of onnx, openvino"):
        ExportedModel(exported("fixed")[1], "tensorrt")
