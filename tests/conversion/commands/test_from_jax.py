"""Converted checkpoints against what the original JAX code computed with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, Siglip2Model, SiglipModel, SiglipVisionModel

from modeling_siglip_ext import SiglipExtModel, SiglipExtVisionModel, sigmoid_loss, softmax_loss
from modeling_siglip_ext.conversion.__main__ import main


FIXTURES = Path(__file__).parents[2] / "fixtures" / "big_vision"
PAIRS = (
    "clip_softmax_nobias",
    "lit_bert",
    "lit_legacy_names",
    "lit_tok_noimghead",
    "siglip1_bf16",
    "siglip1_mu16",
    "siglip1_opt_adafactor",
    "siglip2_naflex",
    "siglip_i18n_so400m_nohead",
    "siglip_scan",
)


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
def test_states_embeddings_and_logits(case, converted):
    check_outputs(SiglipExtModel.from_pretrained(converted(case)).eval(), Recorded(case))


def test_images_in_one_row_give_the_vectors_of_the_original(converted):
    """As above without the states of the layers, for which images stay padded."""
    recorded = Recorded("siglip2_naflex")
    assert len(recorded["in/spatial_shapes"].prod(1).unique()) > 1
    model = SiglipExtModel.from_pretrained(converted("siglip2_naflex")).eval()
    with torch.no_grad():
        output = model(**recorded.inputs())
    assert_near(output.image_embeds, recorded["out/zimg"], 1e-6)
    assert_near(output.logits_per_image, recorded["out/logits_per_image"], 1e-5)
    assert_near(output.vision_model_output.pooler_output, recorded["out/img/pre_logits"], 1e-5)
    valid = recorded["in/type"].bool()
    assert_near(output.vision_model_output.last_hidden_state[valid], recorded["out/img/encoded"][valid], 1e-5)


@pytest.mark.parametrize("size", [48, 96])
def test_another_resolution_resamples_as_the_original(size, converted):
    folder = converted("siglip1_resample", "--image-size", str(size))
    model = SiglipExtModel.from_pretrained(folder).eval()
    recorded = Recorded("siglip1_resample")
    positions = model.vision_model.embeddings.position_embedding.weight
    assert_near(positions, recorded[f"out/pos_embedding_{size}"][0], 1e-6)
    check_outputs(model, recorded, f"out_{size}", f"in/image_{size}")
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": size, "width": size}


def test_the_image_tower_of_paligemma_in_our_form_keeps_its_projection(converted):
    folder = converted("paligemma_tiny")
    report = json.loads((folder / "conversion_report.json").read_text())
    (names,) = report["left_out"].values()
    assert len(names) == 9
    assert all(name.startswith("llm/") for name in names)
    model = SiglipExtVisionModel.from_pretrained(folder).eval()
    recorded = Recorded("paligemma_tiny")
    with torch.no_grad():
        output = model(recorded["in/image"].permute(0, 3, 1, 2))
    assert_near(output.last_hidden_state, recorded["out/img/encoded"], 1e-5)
    assert_near(output.pooler_output, recorded["out/img_tokens"], 1e-5)


def test_the_image_tower_of_paligemma_in_stock_form(converted):
    folder = converted("paligemma_tiny", "--format", "native")
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is SiglipVisionModel
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    report = json.loads((folder / "conversion_report.json").read_text())
    assert ["img/head/bias", "img/head/kernel"] in report["left_out"].values()
    recorded = Recorded("paligemma_tiny")
    with torch.no_grad():
        output = model.eval()(recorded["in/image"].permute(0, 3, 1, 2))
    assert_near(output.last_hidden_state, recorded["out/img/encoded"], 1e-5)


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
def test_gradients_through_the_whole_model(case, converted):
    model, recorded = SiglipExtModel.from_pretrained(converted(case)), Recorded(case)
    output = model(**recorded.inputs(), return_loss=True)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(recorded["out/loss_sigmoid"].item(), rel=1e-5)
    assert_near(model.logit_scale.grad, recorded["out/grad_param_t"], 1e-5)
    assert_near(model.logit_bias.grad, recorded["out/grad_param_b"], 1e-5)
    kernel = recorded["out/grad_param_img_embedding_kernel"]
    gradient = model.vision_model.embeddings.patch_embedding.weight.grad
    gradient = gradient.T if gradient.ndim == 2 else gradient.permute(2, 3, 1, 0)
    torch.testing.assert_close(gradient, kernel, rtol=1e-4, atol=1e-5 * kernel.abs().max().item())


@pytest.mark.parametrize(
    ("case", "stock"),
    [
        ("siglip1_mu16", SiglipModel),
        ("siglip1_bf16", SiglipModel),
        ("siglip1_opt_adafactor", SiglipModel),
        ("siglip_scan", SiglipModel),
        ("siglip_i18n_so400m_nohead", SiglipModel),
        ("siglip2_naflex", Siglip2Model),
    ],
)
def test_stock_form_loads_in_the_stock_classes_with_the_same_outputs(case, stock, converted):
    model, loading = AutoModel.from_pretrained(converted(case), output_loading_info=True)
    assert type(model) is stock
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    recorded = Recorded(case)
    with torch.no_grad():
        output = model.eval()(**recorded.inputs())
    assert_near(output.image_embeds, recorded["out/zimg"], 1e-6)
    assert_near(output.text_embeds, recorded["out/ztxt"], 1e-6)
    assert_near(output.logits_per_image, recorded["out/logits_per_image"], 1e-5)


@pytest.mark.parametrize("case", ["lit_bert", "clip_softmax_nobias", "lit_tok_noimghead"])
def test_what_stock_classes_cannot_hold_becomes_our_form(case, checkpoints, converted, tmp_path, capsys):
    arguments = ["from-jax", str(checkpoints / case / "checkpoint.npz"), str(tmp_path / "out")]
    arguments += ["--text-heads", "4"] if case == "lit_bert" else []
    assert main([*arguments, "--format", "native"]) == 2
    assert "cannot express" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert json.loads((converted(case) / "config.json").read_text())["model_type"] == "siglip_ext"


def test_our_form_keeps_a_missing_head_missing(converted):
    model = SiglipExtModel.from_pretrained(converted("siglip_i18n_so400m_nohead", "--format", "ext"))
    assert model.text_model.head is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_is_the_rounded_source(dtype, converted, checkpoints):
    folder = converted("siglip1_mu16", "--dtype", dtype)
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == getattr(torch, dtype)
    source = np.load(checkpoints / "siglip1_mu16" / "checkpoint.npz")["params/txt/Embed_0/embedding"]
    expected = torch.from_numpy(source).to(model.dtype)
    assert torch.equal(model.text_model.embeddings.token_embedding.weight, expected)
    report = json.loads((folder / "conversion_report.json").read_text())
    rounding = (expected.float() - torch.from_numpy(source)).abs().max().item()
    name = "text_model.embeddings.token_embedding.weight"
    assert report["tensors"][name]["largest_difference"] == pytest.approx(rounding)


def test_shards_load_as_one_model(converted):
    folder = converted("siglip1_mu16", "--max-shard-size", "100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    whole = AutoModel.from_pretrained(converted("siglip1_mu16")).state_dict()
    sharded = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_a_fixed_tower_turned_naflex_gives_the_same_vectors(converted):
    """A square image at the trained size is the same input in both forms."""
    fixed = AutoModel.from_pretrained(converted("siglip1_mu16")).eval()
    naflex = AutoModel.from_pretrained(converted("siglip1_mu16", "--tower", "naflex")).eval()
    assert type(naflex) is Siglip2Model
    pixels = Recorded("siglip1_mu16").inputs()["pixel_values"]
    count = len(pixels)
    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(count, 16, -1)
    with torch.no_grad():
        expected = fixed.get_image_features(pixel_values=pixels).pooler_output
        actual = naflex.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(count, 16, dtype=torch.long),
            spatial_shapes=torch.full((count, 2), 4),
        ).pooler_output
    assert_near(actual, expected, 2e-5)


def test_a_naflex_tower_turned_fixed_and_back_is_itself(converted, checkpoints, tmp_path):
    fixed = converted("siglip2_naflex", "--tower", "fixed")
    assert json.loads((fixed / "config.json").read_text())["model_type"] == "siglip"
    source = np.load(checkpoints / "siglip2_naflex" / "checkpoint.npz")["params/img/embedding/kernel"]
    weight = AutoModel.from_pretrained(fixed).vision_model.embeddings.patch_embedding.weight
    rows, columns, channel = 5, 9, 2
    assert_near(weight[:, channel, rows, columns], torch.from_numpy(source)[(rows * 16 + columns) * 3 + channel], 0)


def test_longer_texts_keep_the_first_and_last_position(converted):
    short = AutoModel.from_pretrained(converted("siglip1_mu16")).text_model.embeddings.position_embedding.weight
    folder = converted("siglip1_mu16", "--text-length", "15")
    model = AutoModel.from_pretrained(folder)
    long = model.text_model.embeddings.position_embedding.weight
    assert model.config.text_config.max_position_embeddings == 15
    assert_near(long[::2], short, 1e-6)
    assert_near(long[1], (short[0] + short[1]) / 2, 1e-6)


def test_legacy_map_head_and_container_of_an_old_optimiser(edited, tmp_path, converted):
    def age(arrays: dict) -> None:
        today = dict(arrays)
        arrays.clear()
        for name, array in today.items():
            name = name.replace("params/img/MAPHead_0/", "params/img/").replace("params/", "opt/target/")
            arrays[name] = array
        arrays["opt/state/param_states/img/embedding/kernel/m"] = today["params/img/embedding/kernel"]

    assert main(["from-jax", str(edited(age)), str(tmp_path / "out")]) == 0
    old, new = AutoModel.from_pretrained(tmp_path / "out"), AutoModel.from_pretrained(converted("siglip1_mu16"))
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in new.state_dict().items())


def test_one_tower_alone_as_in_clippo(edited, tmp_path, capsys):
    def keep_one(arrays: dict) -> None:
        for name in [name for name in arrays if "/txt/" in name or name == "params/b"]:
            del arrays[name]

    assert main(["from-jax", str(edited(keep_one)), str(tmp_path / "out")]) == 0
    assert "left out, the temperature of a model of one tower (CLIPPO): t" in capsys.readouterr().out
    tower = AutoModel.from_pretrained(tmp_path / "out").eval()
    recorded = Recorded("siglip1_mu16")
    with torch.no_grad():
        pooled = tower(recorded.inputs()["pixel_values"]).pooler_output
    assert_near(torch.nn.functional.normalize(pooled, dim=-1), recorded["out/zimg"], 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("params/img/embedding/kernel"), "has no img/embedding/kernel"),
        (lambda a: a.pop("params/img/Transformer/encoderblock_1/LayerNorm_0/bias"), "encoderblock_1/LayerNorm_0/bias"),
        (lambda a: a.update({"params/img/extra": np.zeros(3)}), "understands img/extra"),
        (lambda a: a.update({"params/txt/head/kernel": np.zeros((7, 32), np.float32)}), "do not fit"),
        (lambda a: a.update({"params/img/pos_embedding": np.zeros((16, 32), np.float32)}), "should have 3 sides"),
        (lambda a: a.update({"params/t": np.array([{}], dtype=object)}), "pickled"),
        (lambda a: a.update({"params/t": np.array([3])}), "no floating-point numbers"),
        (lambda a: a["params/t"].fill(np.nan), "NaN or infinite values in logit_scale"),
        (lambda a: a["params/img/MAPHead_0/probe"].fill(np.inf), "NaN or infinite values in vision_model.head.probe"),
    ],
)
def test_a_broken_checkpoint_leaves_a_message_and_no_folder(change, message, edited, tmp_path, capsys):
    checkpoint = edited(change)
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_nonfinite_values_are_converted_when_allowed(edited, tmp_path, capsys):
    checkpoint = edited(lambda arrays: arrays["params/t"].fill(np.nan))
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--allow-nonfinite"]) == 0
    assert "not finite: logit_scale" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "out").logit_scale.isnan().all()


def test_numbers_too_large_for_float16_are_refused(edited, tmp_path, capsys):
    checkpoint = edited(lambda arrays: arrays["params/img/embedding/bias"].fill(1e6))
    assert main(["from-jax", str(checkpoint), str(tmp_path / "out"), "--dtype", "float16"]) == 2
    assert "patch_embedding.bias as torch.float16" in capsys.readouterr().err


def test_an_existing_folder_is_not_touched(checkpoints, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert main(["from-jax", str(checkpoints / "siglip1_mu16" / "checkpoint.npz"), str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(checkpoints, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    assert main(["from-jax", source, str(tmp_path / "file" / "out")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "64", "--tower", "naflex"], "any size"),
        (["--patch-size", "128"], "smaller than patch_size"),
        (["--name", "siglip2_b16_22"], "did you mean siglip2_b16_224"),
        (["--name", "siglip2_b16_224"], "this is not siglip2_b16_224"),
        (["--tokenizer", "nowhere.json", "--text-rules", "v2"], "no tokenizer at nowhere.json"),
    ],
)
def test_impossible_wishes_are_refused(options, message, checkpoints, tmp_path, capsys):
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    assert main(["from-jax", source, str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_size_of_shards_that_is_none_names_its_option(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["from-jax", "a.npz", str(tmp_path / "out"), "--max_shard_size", "abc"])
    assert "argument --max_shard_size: 'abc' is no size" in capsys.readouterr().err
