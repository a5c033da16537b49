"""Exports in 8 bits as a whole: bars, what is refused, and what is left behind."""

import json

import numpy as np
import pytest

from modeling_siglip_ext.conversion.errors import VerificationError
from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model
from siglip_ext_runtime import ExportedModel
from support.exports import save_model


pytest.importorskip("onnxscript", reason="needs the extra onnx")


def test_what_is_refused():
    with pytest.raises(ValueError, match="int8-static is calibrated on images and texts like those of its use"):
        ExportOptions(precision="int8-static")
    with pytest.raises(ValueError, match="int8-static is unknown; choose of fp32, fp16, int8"):
        ExportOptions(format="openvino", precision="int8-static")
    with pytest.raises(ValueError, match=r"transformers\.js is unknown; choose of plain"):
        ExportOptions(format="openvino", layout="transformers.js")


def test_8_bits_have_a_bar_on_inputs_of_ones_own():
    own = {"images": ["a.png"], "texts": ["a cat"]}
    assert ExportOptions(precision="int8", **own).min_cosine == 0.9999
    assert ExportOptions(format="openvino", precision="int8", **own).min_cosine == 0.9999
    assert ExportOptions(precision="int8", min_cosine=0.0, **own).min_cosine == 0
    for other in (ExportOptions(precision="int8"), ExportOptions(**own), ExportOptions(precision="fp16", **own)):
        assert other.min_cosine is None


@pytest.mark.slow
def test_below_the_bar_nothing_is_left(tmp_path):
    save_model(tmp_path / "model", "fixed")
    options = ExportOptions(towers=("vision_model",), precision="int8", min_cosine=0.9999999999)
    with pytest.raises(VerificationError, match="8 bits keep too little"):
        export_model(tmp_path / "model", tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_layers_are_given_back_until_the_bar_is_met(tmp_path):
    save_model(tmp_path / "model", "fixed")
    options = ExportOptions(towers=("vision_model",), precision="int8")
    before = export_model(tmp_path / "model", tmp_path / "before", options).towers["vision_model"]
    assert before.in_float == ()
    bar = 1 - (1 - before.parity.cosine_least) / 2
    options = ExportOptions(towers=("vision_model",), precision="int8", min_cosine=bar)
    after = export_model(tmp_path / "model", tmp_path / "after", options).towers["vision_model"]
    assert after.parity.cosine_least >= bar
    assert after.in_float
    report = json.loads((tmp_path / "after" / "export_report.json").read_text())
    assert report["towers"]["vision_model"]["in_float"] == list(after.in_float)
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    assert ExportedModel(tmp_path / "after").get_image_features(pixels).embeds.shape == (3, 32)
