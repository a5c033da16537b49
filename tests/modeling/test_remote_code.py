"""A folder in `siglip_ext` form works where this package is not installed."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtProcessor,
    SiglipExtTextModel,
    SiglipExtVisionModel,
)
from support.models import TINY, make_processor


WORKER = Path(__file__).parent / "worker_remote_code.py"


def run_without_package(*arguments, cache: Path) -> dict:
    """Run the worker with site-packages on its path, but not the editable installation, and with a cold cache."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(site.getsitepackages()),
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", str(WORKER), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cache.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def processor() -> SiglipExtProcessor:
    # 64 is what the stock pipeline pads to
    return make_processor(["a red square", "a blue circle"], length=64)


@pytest.mark.long
def test_a_process_without_the_package_loads_saves_and_classifies(processor, tmp_path):
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 300, "max_position_embeddings": 64, "pooling": "first"}
    vision = {**TINY, "image_size": 32, "patch_size": 8, "pooling": "mean"}
    model = SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=vision)).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    found = run_without_package(folder, tmp_path / "again", cache=tmp_path / "cache")

    assert found["classes"] == {
        "AutoConfig": "SiglipExtConfig",
        "AutoModel": "SiglipExtModel",
        "AutoModelForZeroShotImageClassification": "SiglipExtModel",
        "AutoModelForImageClassification": "SiglipExtForImageClassification",
        "pipeline": "SiglipExtZeroShotImageClassificationPipeline",
    }
    image = Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 50).convert("RGB")
    inputs = processor(text=["a red square", "a blue circle"], images=image, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        loss = model(**{**inputs, "input_ids": inputs["input_ids"][:1]}, return_loss=True).loss
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found["logits_again"]), expected, rtol=0, atol=1e-5)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    scores = expected[0].sigmoid().tolist()
    assert found["pipeline"] == pytest.approx({"red square": scores[0], "blue circle": scores[1]}, abs=1e-6)


@pytest.mark.parametrize("tower", [SiglipExtTextModel, SiglipExtVisionModel])
def test_towers_in_our_form_name_their_classes(tower, tmp_path):
    config = tower.config_class(**TINY, pooling="mean")
    tower(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"].endswith(tower.__name__)
    assert (tmp_path / "modeling_siglip_ext.py").exists()


def test_stock_form_carries_no_code(tmp_path):
    config = SiglipExtConfig(text_config=TINY, vision_config=TINY)
    SiglipExtModel(config).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_the_bundle_is_complete():
    from modeling_siglip_ext.remote_code import MODULES, source_file

    for module in MODULES:
        for line in source_file(module).read_text().splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("."):
                assert words[1][1:] in MODULES, f"{module} imports {words[1]}, which does not travel with a model"
