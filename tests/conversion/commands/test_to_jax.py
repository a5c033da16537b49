"""Back to JAX: the same names, types and bits that a checkpoint had."""

import numpy as np
import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.conversion.__main__ import main


CASES = [
    "clip_softmax_nobias",
    "lit_bert",
    "lit_legacy_names",
    "lit_tok_noimghead",
    "paligemma_tiny",
    "siglip1_bf16",
    "siglip1_mu16",
    "siglip1_opt_adafactor",
    "siglip1_resample",
    "siglip2_naflex",
    "siglip_i18n_so400m_nohead",
    "siglip_scan",
]
PREFIXES = ("img/", "txt/", "t", "b", "params/img/", "params/txt/", "params/t", "params/b")


def model_arrays(path) -> dict[str, np.ndarray]:
    """The arrays of the model alone: no optimiser, no language model."""
    arrays = dict(np.load(path))
    return {
        name: array
        for name, array in arrays.items()
        if name in PREFIXES or name.startswith(("img/", "txt/", "params/img/", "params/txt/"))
    }


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_identity(case, converted, checkpoints, tmp_path, assert_same_arrays):
    assert main(["to-jax", str(converted(case)), str(tmp_path / "back.npz")]) == 0
    expected = model_arrays(checkpoints / case / "checkpoint.npz")
    assert_same_arrays(dict(np.load(tmp_path / "back.npz")), expected)


def test_a_model_of_old_names_that_was_trained_since_gets_todays(converted, checkpoints, tmp_path):
    """What was added up cannot be told apart any more."""
    model = SiglipExtModel.from_pretrained(converted("lit_legacy_names"))
    model.vision_model.embeddings.class_embedding.data += 1
    model.save_pretrained(tmp_path / "tuned")
    report = (converted("lit_legacy_names") / "conversion_report.json").read_text()
    (tmp_path / "tuned" / "conversion_report.json").write_text(report)
    assert main(["to-jax", str(tmp_path / "tuned"), str(tmp_path / "back.npz")]) == 0
    old, back = np.load(checkpoints / "lit_legacy_names" / "checkpoint.npz"), np.load(tmp_path / "back.npz")
    positions = old["img/Transformer/posembed_input/pos_embedding"]
    np.testing.assert_array_equal(back["img/cls"], old["img/cls"] + positions[:, :1] + 1)
    np.testing.assert_array_equal(back["img/pos_embedding"], positions[:, 1:])
    both = old["txt/pos_embedding"] + old["txt/Encoder_0/pos_embedding"]
    np.testing.assert_array_equal(back["txt/pos_embedding"], both)
    block = "img/Transformer/encoderblock_1"
    expected = old[f"{block}/MlpBlock_3/Dense_0/kernel"]
    np.testing.assert_array_equal(back[f"{block}/MlpBlock_0/Dense_0/kernel"], expected)


def test_a_stock_model_from_elsewhere(tmp_path):
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={**tiny, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**tiny, "image_size": 32, "patch_size": 8},
    )
    model = SiglipModel(config)
    model.save_pretrained(tmp_path / "stock")
    assert main(["to-jax", str(tmp_path / "stock"), str(tmp_path / "jax.npz")]) == 0
    arrays = np.load(tmp_path / "jax.npz")
    query = model.vision_model.encoder.layers[1].self_attn.q_proj.weight.detach()
    kernel = arrays["params/img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"]
    assert kernel.shape == (32, 4, 8)
    tokens = torch.randn(5, 32)  # by flax's definition of the projection, not by the map that is tested
    expected = np.einsum("nd,dhk->nhk", tokens.numpy(), kernel)
    np.testing.assert_allclose(expected.reshape(5, 32), (tokens @ query.T).numpy(), atol=1e-5)
    assert main(["from-jax", str(tmp_path / "jax.npz"), str(tmp_path / "again"), "--image-size", "32"]) == 0
    again = SiglipModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_head_that_was_trained_since_is_kept(converted, tmp_path):
    model = SiglipExtModel.from_pretrained(converted("siglip_i18n_so400m_nohead"))
    model.text_model.head.bias.data += 1
    model.save_pretrained(tmp_path / "tuned")
    report = (converted("siglip_i18n_so400m_nohead") / "conversion_report.json").read_text()
    (tmp_path / "tuned" / "conversion_report.json").write_text(report)
    assert main(["to-jax", str(tmp_path / "tuned"), str(tmp_path / "back.npz")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "back.npz")["params/txt/head/bias"], 1)


def test_a_model_of_one_tower_keeps_its_temperature(edited, tmp_path, assert_same_arrays):
    """CLIPPO: no class has a place for it, so it waits in the report."""

    def keep_one(arrays: dict) -> None:
        for name in [name for name in arrays if "/txt/" in name or name == "params/b"]:
            del arrays[name]

    checkpoint = edited(keep_one)
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out")]) == 0
    assert main(["to-jax", str(tmp_path / "out"), str(tmp_path / "back.npz")]) == 0
    assert_same_arrays(dict(np.load(tmp_path / "back.npz")), dict(np.load(checkpoint)))


def test_another_type(converted, tmp_path):
    assert main(["to-jax", str(converted("siglip1_mu16")), str(tmp_path / "x.npz"), "--dtype", "bfloat16"]) == 0
    array = np.load(tmp_path / "x.npz")["params/img/embedding/bias"]
    assert array.dtype == np.dtype("V2")


def test_bad_input_is_refused_and_leaves_nothing(converted, tmp_path, capsys):
    folder = str(converted("siglip1_mu16"))
    assert main(["to-jax", folder, str(tmp_path / "x.bin")]) == 2
    assert "must end in .npz" in capsys.readouterr().err
    assert main(["to-jax", str(tmp_path / "none"), str(tmp_path / "x.npz")]) == 2
    assert "does not exist" in capsys.readouterr().err
    model = SiglipModel.from_pretrained(folder)
    model.logit_scale.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    assert main(["to-jax", str(tmp_path / "nan"), str(tmp_path / "x.npz")]) == 2
    assert "NaN or infinite values in logit_scale" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]
