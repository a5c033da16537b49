"""OpenVINO's files against the model in torch, and which weights are in 8 bits."""

import json
import sys

import numpy as np
import pytest
import torch

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.conversion.export.onnx_file import check_installed
from modeling_siglip_ext.conversion.export.report import REPORT
from siglip_ext_runtime import ExportedModel


ov = pytest.importorskip("openvino", reason="needs the extra openvino")
pytest.importorskip("nncf", reason="needs the extra openvino")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


@pytest.mark.long
@torch.no_grad()
def test_fixed_images_and_texts(exported):
    folder, out = exported("fixed", form="openvino")
    model, files = SiglipExtModel.from_pretrained(folder).eval(), ExportedModel(out, "openvino")
    for count in (1, 5):  # none of them was traced
        pixels, ids = torch.randn(count, 3, 32, 32), torch.randint(0, 300, (count, 16))
        wanted = model.get_image_features(pixels)
        found = files.get_image_features(pixels.numpy())
        assert np.abs(found.embeds - unit(wanted.pooler_output)).max() < 5e-7
        assert np.abs(found.last_hidden_state - wanted.last_hidden_state.numpy()).max() < 2e-5
        wanted = model.get_text_features(ids)
        assert np.abs(files.get_text_features(ids.numpy()).embeds - unit(wanted.pooler_output)).max() < 5e-7
    assert files.settings.runtime == {"openvino": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert json.loads((out / REPORT).read_text())["format"] == "openvino"


@pytest.mark.slow
@torch.no_grad()
def test_naflex_grids_that_were_not_traced(exported):
    folder, out = exported("naflex", form="openvino")
    model, files = SiglipExtModel.from_pretrained(folder).eval(), ExportedModel(out, "openvino")
    for length, grids in ((16, [[4, 4]]), (25, [[1, 1], [5, 5], [3, 7]]), (40, [[40, 1], [1, 40], [2, 9], [6, 6]])):
        shapes = torch.tensor(grids)
        mask = (torch.arange(length) < shapes.prod(dim=1, keepdim=True)).long()
        inputs = torch.randn(len(grids), length, 48), mask, shapes
        found = files.get_image_features(*(tensor.numpy() for tensor in inputs)).embeds
        assert np.abs(found - unit(model.get_image_features(*inputs).pooler_output)).max() < 5e-7


@pytest.mark.slow
def test_int8_weights_of_chosen_layers(exported):
    folder, out = exported("fixed", "int8", "openvino")
    widths = {}
    for node in ov.Core().read_model(out / "vision_model.xml").get_ordered_ops():
        if node.get_type_name() == "MatMul":
            widths[node.get_friendly_name()] = reaches_int8(node)
    assert len(widths) == 2 * 6 + 4
    first = [name for name in widths if "layers.0." in name]
    assert len(first) == 6
    assert not any(widths[name] for name in first)
    assert all(widths[name] for name in widths if name not in first)
    files, model = ExportedModel(out, "openvino"), SiglipExtModel.from_pretrained(folder).eval()
    pixels = torch.randn(9, 3, 32, 32)
    found = files.get_image_features(pixels.numpy()).embeds
    with torch.no_grad():
        cosines = (found * unit(model.get_image_features(pixels).pooler_output)).sum(axis=1)
    assert 0.995 < cosines.min() < 1 - 1e-6
    alone = np.concatenate([files.get_image_features(pixels[row : row + 1].numpy()).embeds for row in range(9)])
    assert np.abs(alone - found).max() < 1e-6


def reaches_int8(node) -> bool:
    """Whether the weights of a product are stored in 8 bits, before they are multiplied by their scales."""
    while node.get_type_name() != "Constant":
        node = node.input_value(node.get_input_size() - 1 if node.get_type_name() == "MatMul" else 0).get_node()
        if node.get_type_name() not in ("Constant", "Convert", "Multiply"):
            return False
    return str(node.get_element_type()) == "<Type: 'int8_t'>"


def test_each_runtime_has_its_files(exported):
    _, out = exported("fixed", form="openvino")
    with pytest.raises(ValueError, match=r"vision_model.xml is a file of OpenVINO"):
        ExportedModel(out, "onnx").get_image_features(np.zeros((1, 3, 32, 32), np.float32))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r"exporting to openvino needs nncf: `pip install siglip-ext\[openvino\]`"):
        check_installed("openvino")
