"""Packages of AOTInductor against the model in torch, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.conversion.__main__ import main as convert
from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model
from modeling_siglip_ext.dual_models import ModelSettings, load_dual_model
from modeling_siglip_ext.evaluation.__main__ import main as evaluate
from siglip_ext_runtime import ExportedModel
from siglip_ext_runtime.backends import BACKENDS, aoti, built_with
from support.exports import compiled, save_model


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < 1e-5
    assert 1 - (found.astype(np.float64) * wanted).sum(axis=1).min() < 5e-6


@compiled
@pytest.mark.slow
@torch.no_grad()
def test_images_and_texts_of_any_number(exported):
    folder, out = exported("fixed", form="aoti")
    model, files = SiglipExtModel.from_pretrained(folder).eval(), ExportedModel(out, "aoti")
    for count in (1, 3, 64):
        pixels, ids = torch.randn(count, 3, 32, 32), torch.randint(0, 300, (count, 16))
        wanted = model.get_image_features(pixels)
        found = files.get_image_features(pixels.numpy())
        assert_near(found.embeds, unit(wanted.pooler_output))
        assert np.abs(found.last_hidden_state - wanted.last_hidden_state.numpy()).max() < 2e-5
        assert_near(files.get_text_features(ids.numpy()).embeds, unit(model.get_text_features(ids).pooler_output))
    assert files.settings.runtime == {"aoti": built_with()}
    assert f"torch {torch.__version__.partition('+')[0]} and no other" in (out / "README.md").read_text()
    assert sorted(path.suffix for path in out.iterdir() if path.stem in files.settings.files) == [".pt2", ".pt2"]


@compiled
@pytest.mark.slow
@torch.no_grad()
def test_naflex_grids_that_were_not_traced_and_both_towers_in_one(tmp_path):
    save_model(tmp_path / "model", "naflex")
    export_model(tmp_path / "model", tmp_path / "out", ExportOptions(("vision_model", "model"), "aoti"))
    model, files = SiglipExtModel.from_pretrained(tmp_path / "model").eval(), ExportedModel(tmp_path / "out", "aoti")
    for length, grids in (
        (16, [[4, 4]]),
        (25, [[1, 1], [5, 5], [3, 7]]),
        (40, [[40, 1], [1, 40], [2, 9], [6, 6]] * 16),
    ):
        shapes = torch.tensor(grids)
        mask = (torch.arange(length) < shapes.prod(dim=1, keepdim=True)).long()
        inputs = torch.randn(len(grids), length, 48), mask, shapes
        wanted = unit(model.get_image_features(*inputs).pooler_output)
        assert_near(files.get_image_features(*(tensor.numpy() for tensor in inputs)).embeds, wanted)
        ids = torch.randint(0, 300, (2, 16))
        given = dict(zip(("pixel_values", "pixel_attention_mask", "spatial_shapes"), inputs)) | {"input_ids": ids}
        both = files.tower("model")({name: tensor.numpy() for name, tensor in given.items()})
        assert_near(both["image_embeds"], wanted)
        logits = model(**given).logits_per_image.numpy()
        assert both["logits_per_image"].shape == logits.shape
        assert np.abs(both["logits_per_image"] - logits).max() < 1e-4


@compiled
@pytest.mark.slow
@torch.no_grad()
def test_bfloat16(tmp_path):
    save_model(tmp_path / "model", "fixed")
    options = ExportOptions(("vision_model",), "aoti", "bf16", min_cosine=0.999)
    report = export_model(tmp_path / "model", tmp_path / "out", options)
    assert report.towers["vision_model"].parity.cosine_least < 1 - 1e-7
    found = ExportedModel(tmp_path / "out", "aoti").get_image_features(torch.zeros(3, 3, 32, 32))
    assert found.embeds.dtype == torch.float32


@compiled
@pytest.mark.slow
def test_evaluations_take_one(exported, tmp_path):
    folder, out = exported("fixed", form="aoti")
    random, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for place in range(3):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(images / f"{place}.png")
    vectors = []
    for place, engine in ((folder, ["--device", "cpu"]), (out, ["--backend", "aoti"])):
        words = ["--images", str(images), "--output_dir", str(tmp_path / place.name)]
        assert evaluate(["embed", "--model", str(place), *engine, *words]) == 0
        vectors.append(store.read(tmp_path / place.name)[0].numpy())
    assert_near(vectors[1], vectors[0])


@compiled
@pytest.mark.slow
def test_inputs_that_machine_code_must_not_see(exported):
    model = ExportedModel(exported("fixed", form="aoti")[1], "aoti")
    for ids in (torch.zeros(2, 15), torch.zeros(0, 16), torch.zeros(16), torch.full((2, 16), 300), -torch.ones(2, 16)):
        with pytest.raises(ValueError, match=r"text_model\.pt2 does not take these inputs"):
            model.get_text_features(ids.long())
    with pytest.raises(ValueError, match="file of AOTInductor"):
        ExportedModel(model.folder, "onnx").get_text_features(torch.zeros(2, 16))


@compiled
@pytest.mark.slow
def test_a_process_without_a_compiler_runs_it(exported, tmp_path):
    path = exported("fixed", form="aoti")[1] / "vision_model.pt2"
    np.savez(tmp_path / "inputs.npz", pixel_values=np.zeros((2, 3, 32, 32), np.float32))
    command = [sys.executable, "-m", "siglip_ext_runtime.memory", str(path), str(tmp_path / "inputs.npz"), "aoti"]
    environment = {**os.environ, "PATH": "", "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 1e7
    assert not (tmp_path / "cache").exists()


@compiled
@pytest.mark.slow
def test_what_was_compiled_elsewhere_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported("fixed", form="aoti")[1], tmp_path / "copy")
    settings = json.loads((copy / "export.json").read_text())
    settings["runtime"]["aoti"]["torch"] = "2.1.0"
    (copy / "export.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"compiled for {'torch': '2\.1\.0', .*}, and here is {.*}: export the model"):
        ExportedModel(copy, "aoti").get_text_features(torch.zeros(2, 16))


def test_a_file_that_is_none_is_said(tmp_path):
    (tmp_path / "vision_model.pt2").write_bytes(b"no package")
    for path in (tmp_path / "vision_model.pt2", tmp_path / "text_model.pt2"):
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read: [^\n]*$"):
            aoti(path)
    with pytest.raises(ValueError, match=r"vision_model\.pt2 is a file of AOTInductor"):
        BACKENDS["onnx"](tmp_path / "vision_model.pt2")


def test_machine_code_of_the_hub_is_not_run_unasked():
    with pytest.raises(ValueError, match="is machine code: run it with --trust_remote_code if you trust it"):
        load_dual_model(ModelSettings("someone/siglip-aoti", backend="aoti"))


def test_without_a_compiler_nothing_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")
    assert convert(["to-aoti", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert (
        "exporting to aoti needs a C++ compiler, and there is no no-compiler"
        in capsys.readouterr().err.splitlines()[-1]
    )
    assert not list(tmp_path.iterdir())


@compiled
@pytest.mark.slow
def test_what_does_not_compile_leaves_nothing(tmp_path, capfd):
    save_model(tmp_path / "model", "fixed")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo cannot compile; exit 1; }\n')
    compiler.chmod(0o755)
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        assert convert(["to-aoti", str(tmp_path / "model"), str(tmp_path / "out"), "--towers", "text"]) == 2
    said = capfd.readouterr().err
    assert "torch cannot compile this text_model" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compiler", "model"]
