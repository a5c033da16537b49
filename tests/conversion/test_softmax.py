"""Softmax checkpoints, which have no bias: kept as they are, or in stock form with a bias of 0 where one is wanted."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext import SiglipExtModel, softmax_loss
from modeling_siglip_ext.conversion.__main__ import main
from support.models import make_config


CASE = "siglip1_mu16"  # two SigLIP towers; without its bias it is what a softmax run of big_vision writes


@pytest.fixture
def checkpoint(edited):
    return edited(lambda arrays: arrays.pop("params/b"))


@pytest.fixture
def recorded(checkpoints) -> dict[str, torch.Tensor]:
    """Inputs, and what the original computed with the bias in place."""
    arrays = np.load(checkpoints / CASE / "io.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def inputs(recorded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"input_ids": recorded["in/text"].long(), "pixel_values": recorded["in/image"].permute(0, 3, 1, 2)}


def test_stock_form_with_a_bias_of_zero_has_the_same_probabilities(checkpoint, recorded, tmp_path, capsys):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--zero-bias"]) == 0
    assert "sigmoid scores are not calibrated" in capsys.readouterr().err
    model, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is SiglipModel
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.logit_bias.item() == 0
    with torch.no_grad():
        logits = model.eval()(**inputs(recorded)).logits_per_image
    # a softmax does not see a constant
    expected = recorded["out/logits_per_image"]
    torch.testing.assert_close(logits, expected - recorded["out/b"], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text())["loss"] == "softmax"
    assert main(["verify", str(tmp_path / "out"), "--against", str(checkpoint)]) == 0


def test_a_softmax_model_with_a_bias_is_said_to_come_back_as_sigmoid(tmp_path, capsys):
    SiglipExtModel(make_config(loss_type="softmax")).save_pretrained(tmp_path / "model")
    assert main(["to-jax", str(tmp_path / "model"), str(tmp_path / "back.npz")]) == 0
    assert "comes back as one of sigmoid" in capsys.readouterr().out


def test_our_classes_go_on_with_the_softmax_loss(checkpoint, recorded, tmp_path):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--zero-bias"]) == 0
    model = SiglipExtModel.from_pretrained(tmp_path / "out")
    assert model.config.loss_type == "softmax"
    output = model(**inputs(recorded), return_loss=True)
    expected = softmax_loss(recorded["out/zimg"], recorded["out/ztxt"], recorded["out/t_param"])
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_without_the_option_nothing_is_added(checkpoint, tmp_path):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out")]) == 0
    model = SiglipExtModel.from_pretrained(tmp_path / "out")
    assert model.config.loss_type == "softmax"
    assert model.logit_bias is None


@pytest.mark.parametrize("option", [(), ("--zero-bias",)])
def test_there_and_back_is_the_identity(option, checkpoint, tmp_path, assert_same_arrays):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), *option]) == 0
    assert main(["to-jax", str(tmp_path / "out"), str(tmp_path / "back.npz")]) == 0
    assert_same_arrays(dict(np.load(tmp_path / "back.npz")), dict(np.load(checkpoint)))


def test_a_bias_that_was_trained_since_is_kept(checkpoint, tmp_path):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--zero-bias"]) == 0
    model = SiglipModel.from_pretrained(tmp_path / "out")
    model.logit_bias.data.fill_(-3)
    model.save_pretrained(tmp_path / "out")
    assert main(["to-jax", str(tmp_path / "out"), str(tmp_path / "back.npz")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "back.npz")["params/b"], [-3])


def test_a_softmax_model_of_open_clip(checkpoint, tmp_path):
    ext, clip, back = (str(tmp_path / name) for name in ("ext", "clip", "back"))
    assert main(["from-jax", str(checkpoint), ext]) == 0
    assert main(["to-open-clip", ext, clip]) == 0
    assert main(["from-open-clip", clip, back, "--image-heads", "2", "--zero-bias"]) == 0
    assert SiglipModel.from_pretrained(back).logit_bias.item() == 0
    assert main(["verify", back, "--against", clip]) == 0


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (CASE, ["--zero-bias"], "is for softmax models of two towers without a bias"),
        ("paligemma_tiny", ["--zero-bias"], "is for softmax models of two towers without a bias"),
        ("clip_softmax_nobias", ["--zero-bias", "--format", "ext"], "keeps a softmax model as it is"),
        ("clip_softmax_nobias", ["--zero-bias"], "stock classes cannot express this model"),
        ("clip_softmax_nobias", ["--format", "native"], "stock classes cannot express this model"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(case, options, message, checkpoints, tmp_path, capsys):
    source = str(checkpoints / case / "checkpoint.npz")
    assert main(["from-jax", source, str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_option_is_named_where_it_would_help(checkpoint, tmp_path, capsys):
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--format", "native"]) == 2
    assert "add --zero_bias" in capsys.readouterr().err
