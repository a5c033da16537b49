"""Converted checkpoints against what the original JAX code computed with them."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, Siglip2Model, SiglipModel

from modeling_siglip_ext import SiglipExtModel, SiglipExtVisionModel, sigmoid_loss, softmax_loss
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.big_vision import Choices, describe, modern, parameters, rules, stacked_towers
from modeling_siglip_ext.conversion.containers import CheckpointError, LazyArray, as_tensor, read_npz
from modeling_siglip_ext.conversion.from_jax import load_jax
from modeling_siglip_ext.conversion.name_map import from_torch, to_torch


FIXTURES = Path(__file__).parents[1] / "fixtures" / "big_vision"
PAIRS = {  # case: what the checkpoint cannot tell
    "clip_softmax_nobias": Choices(text_pooling="first"),
    "lit_bert": Choices(text_heads=4),
    "lit_legacy_names": Choices(),
    "lit_tok_noimghead": Choices(),
    "siglip1_bf16": Choices(),
    "siglip1_mu16": Choices(),
    "siglip1_opt_adafactor": Choices(),
    "siglip2_naflex": Choices(),
    "siglip_i18n_so400m_nohead": Choices(),
    "siglip_scan": Choices(),
}


class Recorded:
    """Inputs and outputs of one case as tensors."""

    def __init__(self, case: str):
        self.arrays = np.load(FIXTURES / case / "io.npz")

    def __contains__(self, name: str) -> bool:
        return name in self.arrays.files

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def inputs(self, image: str = "in/image") -> dict[str, torch.Tensor]:
        if "in/patches" in self:
            vision = {
                "pixel_values": self["in/patches"],
                "pixel_attention_mask": self["in/type"].long(),
                "spatial_shapes": self["in/spatial_shapes"].long(),
            }
        else:
            vision = {"pixel_values": self[image].permute(0, 3, 1, 2)}
        return {"input_ids": self["in/text"].long(), **vision}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def load(case: str) -> SiglipExtModel:
    return load_jax(FIXTURES / case / "checkpoint.npz", PAIRS[case]).model


def check_outputs(model: SiglipExtModel, recorded: Recorded, out: str = "out", image: str = "in/image") -> None:
    with torch.no_grad():
        output = model(**recorded.inputs(image), output_hidden_states=True)
    for tower, states in (("img", output.vision_model_output), ("txt", output.text_model_output)):
        for index, block in enumerate(states.hidden_states[1:]):
            if (name := f"{out}/{tower}/block{index:02d}") in recorded:
                valid = recorded["in/type"].bool() if tower == "img" and "in/type" in recorded else slice(None)
                assert_near(block[valid], recorded[name][valid], 1e-5)
    last = output.text_model_output.last_hidden_state
    valid = slice(None)
    if "out/txt/block00" not in recorded:  # BERT; the states of its padding depend on how it is masked
        valid = recorded["in/text"] != 0
    assert_near(last[valid], recorded[f"{out}/txt/transformed"][valid], 1e-5)
    assert_near(output.image_embeds, recorded[f"{out}/zimg"], 1e-6)
    assert_near(output.text_embeds, recorded[f"{out}/ztxt"], 1e-6)
    assert_near(output.logits_per_image, recorded[f"{out}/logits_per_image"], 1e-5)


@pytest.mark.parametrize("case", PAIRS)
def test_states_embeddings_and_logits(case):
    check_outputs(load(case), Recorded(case))


@pytest.mark.parametrize("size", [48, 96])
def test_another_resolution_resamples_as_the_original(size):
    checkpoint = FIXTURES / "siglip1_resample" / "checkpoint.npz"
    model = load_jax(checkpoint, Choices(image_size=size)).model
    recorded = Recorded("siglip1_resample")
    positions = model.vision_model.embeddings.position_embedding.weight
    assert_near(positions, recorded[f"out/pos_embedding_{size}"][0], 1e-6)
    check_outputs(model, recorded, f"out_{size}", f"in/image_{size}")


def test_the_image_tower_of_paligemma():
    converted = load_jax(FIXTURES / "paligemma_tiny" / "checkpoint.npz")
    recorded = Recorded("paligemma_tiny")
    assert isinstance(converted.model, SiglipExtVisionModel)
    assert len(converted.left_out) == 9
    assert all(name.startswith("llm/") for name in converted.left_out)
    with torch.no_grad():
        output = converted.model(recorded["in/image"].permute(0, 3, 1, 2))
    assert_near(output.last_hidden_state, recorded["out/img/encoded"], 1e-5)
    assert_near(output.pooler_output, recorded["out/img_tokens"], 1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("case", PAIRS)
def test_losses_and_their_gradients(case, kind):
    recorded = Recorded(case)
    name, prefix = ("loss_sigmoid", "grad") if kind == "sigmoid" else ("loss_softmax_bidirectional", "grad_softmax")
    if f"out/{name}" not in recorded:
        assert kind == "sigmoid"
        assert "out/b" not in recorded
        return
    leaves = {"zimg": recorded["out/zimg"], "ztxt": recorded["out/ztxt"], "t": recorded["out/t_param"]}
    if kind == "sigmoid":
        leaves["b"] = recorded["out/b"]
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in leaves.items()}
    loss = (sigmoid_loss if kind == "sigmoid" else softmax_loss)(*leaves.values())
    loss.backward()
    assert loss.item() == pytest.approx(recorded[f"out/{name}"].item(), rel=1e-5)
    expected = {key: recorded[f"out/{prefix}_{key}"] for key in leaves}
    for key, leaf in leaves.items():
        assert_near(leaf.grad, expected[key], 1e-5)


@pytest.mark.parametrize("case", [case for case in PAIRS if "out/grad_param_t" in Recorded(case)])
def test_gradients_through_the_whole_model(case):
    model, recorded = load(case), Recorded(case)
    output = model(**recorded.inputs(), return_loss=True)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(recorded["out/loss_sigmoid"].item(), rel=1e-5)
    assert_near(model.logit_scale.grad, recorded["out/grad_param_t"], 1e-5)
    assert_near(model.logit_bias.grad, recorded["out/grad_param_b"], 1e-5)
    kernel = recorded["out/grad_param_img_embedding_kernel"]
    gradient = model.vision_model.embeddings.patch_embedding.weight.grad
    gradient = gradient.T if gradient.ndim == 2 else gradient.permute(2, 3, 1, 0)
    torch.testing.assert_close(gradient, kernel, rtol=1e-4, atol=1e-5 * kernel.abs().max().item())


@pytest.mark.parametrize("case", [*PAIRS, "paligemma_tiny"])
def test_the_map_is_the_identity_there_and_back(case):
    params = modern(parameters(read_npz(FIXTURES / case / "checkpoint.npz")))
    config = describe(params, PAIRS.get(case))
    table = rules(config, stacked_towers(params))
    tensors = dict(to_torch(table, lambda name: params[name].load()))
    back = dict(from_torch(table, tensors))
    assert set(back) == {name for name in params if not name.startswith("llm/")}
    for name, array in back.items():
        assert array.dtype == params[name].load().dtype
        assert torch.equal(array, params[name].load()), name


@pytest.mark.parametrize(
    ("case", "stock"),
    [("siglip1_mu16", SiglipModel), ("siglip_i18n_so400m_nohead", SiglipModel), ("siglip2_naflex", Siglip2Model)],
)
def test_the_command_writes_a_folder_for_the_stock_classes(case, stock, tmp_path, capsys):
    assert main(["from-jax", str(FIXTURES / case / "checkpoint.npz"), str(tmp_path / "out")]) == 0
    assert "SiglipExtModel" in capsys.readouterr().out
    model, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is stock
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    recorded = Recorded(case)
    with torch.no_grad():
        output = model.eval()(**recorded.inputs())
    assert_near(output.image_embeds, recorded["out/zimg"], 1e-6)
    assert_near(output.text_embeds, recorded["out/ztxt"], 1e-6)
    assert_near(output.logits_per_image, recorded["out/logits_per_image"], 1e-5)


@pytest.mark.parametrize("case", ["lit_bert", "clip_softmax_nobias", "lit_tok_noimghead"])
def test_the_command_writes_our_form_for_the_rest(case, tmp_path):
    arguments = ["from-jax", str(FIXTURES / case / "checkpoint.npz"), str(tmp_path / "out")]
    arguments += {"lit_bert": ["--text-heads", "4"], "clip_softmax_nobias": ["--text-pooling", "first"]}.get(case, [])
    assert main([*arguments, "--format", "native"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "siglip_ext"
    check_outputs(AutoModel.from_pretrained(tmp_path / "out").eval(), Recorded(case))


def test_ext_form_keeps_a_missing_head_missing(tmp_path):
    checkpoint = FIXTURES / "siglip_i18n_so400m_nohead" / "checkpoint.npz"
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--format", "ext"]) == 0
    model = SiglipExtModel.from_pretrained(tmp_path / "out")
    assert model.text_model.head is None


def test_legacy_map_head_and_container_of_an_old_optimiser():
    arrays = read_npz(FIXTURES / "siglip1_mu16" / "checkpoint.npz")
    old = {name.replace("params/img/MAPHead_0/", "params/img/"): array for name, array in arrays.items()}
    old = {name.replace("params/", "opt/target/"): array for name, array in old.items()}
    old["opt/state/param_states/img/embedding/kernel/m"] = arrays["params/img/embedding/kernel"]
    today = parameters(arrays)
    assert set(modern(parameters(old))) == set(today)


def test_bfloat16_is_read_exactly():
    raw = np.array([0x3F80, 0xC020, 0x7F80], dtype=np.uint16).view("V2")
    assert as_tensor(raw).tolist() == [1.0, -2.5, float("inf")]


def broken(tmp_path: Path, change) -> Path:
    arrays = dict(np.load(FIXTURES / "siglip1_mu16" / "checkpoint.npz"))
    change(arrays)
    np.savez(tmp_path / "broken.npz", **arrays)
    return tmp_path / "broken.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("params/img/embedding/kernel"), "has no img/embedding/kernel"),
        (lambda a: a.pop("params/img/Transformer/encoderblock_1/LayerNorm_0/bias"), "encoderblock_1/LayerNorm_0/bias"),
        (lambda a: a.update({"params/img/extra": np.zeros(3)}), "understands img/extra"),
        (lambda a: a.update({"params/txt/head/kernel": np.zeros((7, 32), np.float32)}), "do not fit"),
        (lambda a: a.update({"params/t": np.array([{}], dtype=object)}), "pickled"),
    ],
)
def test_a_broken_checkpoint_leaves_a_message_and_no_folder(change, message, tmp_path, capsys):
    checkpoint = broken(tmp_path, change)
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_truncated_or_foreign_file_is_refused(tmp_path, capsys):
    data = (FIXTURES / "siglip1_mu16" / "checkpoint.npz").read_bytes()
    for name, content in (("cut.npz", data[: len(data) // 2]), ("text.npz", b"no checkpoint")):
        (tmp_path / name).write_bytes(content)
        assert main(["from-jax", str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert "not a sound .npz file" in capsys.readouterr().err
    assert main(["from-jax", str(tmp_path / "none.npz"), str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert main(["from-jax", str(FIXTURES / "siglip1_mu16" / "checkpoint.npz"), str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_tensorstore_folder_through_its_pointer(tmp_path, capsys):
    with tarfile.open(FIXTURES / "siglip1_tensorstore" / "checkpoint.bv.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    check_outputs(load_jax(tmp_path / "checkpoint.bv").model, Recorded("siglip1_tensorstore"))
    (tmp_path / "checkpoint.bv-000000004" / "params~img~cls").mkdir()
    (tmp_path / "checkpoint.bv-000000004" / "params~img~cls" / ".zarray").write_text("{")
    assert main(["from-jax", str(tmp_path / "checkpoint.bv"), str(tmp_path / "out")]) == 2
    assert "params~img~cls/.zarray is damaged" in capsys.readouterr().err
    (tmp_path / "checkpoint.bv-LAST").write_text("000000009")
    assert main(["from-jax", str(tmp_path / "checkpoint.bv"), str(tmp_path / "out")]) == 2
    assert "points to" in capsys.readouterr().err


def test_a_folder_without_arrays_is_no_checkpoint(tmp_path, capsys):
    assert main(["from-jax", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no zarr arrays" in capsys.readouterr().err


def test_one_tower_alone_as_in_clippo(tmp_path, capsys):
    arrays = dict(np.load(FIXTURES / "siglip1_mu16" / "checkpoint.npz"))
    kept = {name: array for name, array in arrays.items() if "/txt/" not in name and name != "params/b"}
    np.savez(tmp_path / "clippo.npz", **kept)
    assert main(["from-jax", str(tmp_path / "clippo.npz"), str(tmp_path / "out")]) == 0
    assert "left out, the temperature of a model of one tower (CLIPPO): t" in capsys.readouterr().out
    tower = AutoModel.from_pretrained(tmp_path / "out").eval()
    recorded = Recorded("siglip1_mu16")
    with torch.no_grad():
        pooled = tower(recorded.inputs()["pixel_values"]).pooler_output
    assert_near(torch.nn.functional.normalize(pooled, dim=-1), recorded["out/zimg"], 1e-6)


def test_sincos_positions_need_an_image_size():
    params = modern(parameters(read_npz(FIXTURES / "siglip1_mu16" / "checkpoint.npz")))
    del params["img/pos_embedding"]
    with pytest.raises(CheckpointError, match="image size"):
        describe(params)
    assert describe(params, Choices(image_size=64)).vision_config.position_embedding_type == "sincos2d"


def test_pre_logits_and_image_head_are_found():
    params = modern(parameters(read_npz(FIXTURES / "siglip1_mu16" / "checkpoint.npz")))
    for name, shape in (("pre_logits/kernel", (32, 32)), ("pre_logits/bias", (32,)), ("head/kernel", (32, 32))):
        params[f"img/{name}"] = LazyArray(shape, lambda shape=shape: torch.zeros(shape))
    vision = describe(params).vision_config
    assert vision.pre_logits
    assert vision.projection_size == 32
