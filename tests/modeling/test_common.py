"""The contracts of transformers' common model tests, over every public class.

Their own mixins come with the source distribution only, not with the wheel. What they demand of any model is said here
once more: outputs, embeddings, saving, dtypes, devices, attention backends, checkpointing.
"""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import BertConfig, Siglip2Model, SiglipModel, ViTConfig

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtTextModel,
    SiglipExtVisionModel,
)
from support.models import TINY, TINY_NAFLEX, TINY_TEXT, TINY_VISION


LAYERS, HEADS, WIDTH = (TINY[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
GRIDS = torch.tensor([[4, 4], [3, 5]])
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FOREIGN = {"text_config": BertConfig(**TINY, **NO_DROPOUT, vocab_size=99), "vision_config": ViTConfig(**TINY_VISION)}
CASES = {
    "dual": (SiglipExtModel, {}),
    "dual_naflex": (SiglipExtModel, {"vision_config": TINY_NAFLEX}),
    "dual_lit": (SiglipExtModel, {**FOREIGN, "text_projection_size": WIDTH}),
    "text": (SiglipExtTextModel, {}),
    "text_narrow": (SiglipExtTextModel, {"text_config": {**TINY_TEXT, "pooling": "map", "token_embedding_size": 8}}),
    "vision": (SiglipExtVisionModel, {}),
    "vision_naflex": (SiglipExtVisionModel, {"vision_config": TINY_NAFLEX}),
    "vision_headless": (SiglipExtVisionModel, {"vision_config": {**TINY_VISION, "pooling": "none"}}),
    "classifier": (SiglipExtForImageClassification, {"num_labels": 3}),
    "classifier_naflex": (SiglipExtForImageClassification, {"vision_config": TINY_NAFLEX, "num_labels": 3}),
}
TEXTS = [case for case in CASES if case != "dual_lit" and ("dual" in case or "text" in case)]


def build(case: str, **options) -> nn.Module:
    torch.manual_seed(0)
    kind, fields = CASES[case]
    config = SiglipExtConfig(**{"text_config": TINY_TEXT, "vision_config": TINY_VISION, **fields})
    config = {SiglipExtTextModel: config.text_config, SiglipExtVisionModel: config.vision_config}.get(kind, config)
    return kind._from_config(config, **options).eval()


def inputs_for(case: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    if "dual" in case or "text" in case:
        inputs["input_ids"] = torch.randint(2, 99, (2, 8), generator=generator)
    if "naflex" in case:
        patches = torch.randn(2, 16, 48, generator=generator)
        mask = (torch.arange(16) < GRIDS.prod(1, keepdim=True)).long()
        inputs |= {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": GRIDS}
    elif "text" not in case:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    return inputs


def towers(output) -> list:
    """The outputs that have hidden states: a tower's own, or those of both towers."""
    both = [getattr(output, f"{kind}_model_output", None) for kind in ("text", "vision")]
    return both if both[0] is not None else [output]


def assert_equal(found, expected, image_tokens: torch.Tensor | None = None) -> None:
    """Equal tensors; of NaFlex's image tokens only those of a mask (B, N), as padding is not computed."""
    leaves, wanted = (pytree.tree_leaves(output) for output in (found, expected))
    assert len(leaves) == len(wanted)
    for one, other in zip(leaves, wanted):
        if image_tokens is not None and one.ndim == 3 and one.shape[:2] == image_tokens.shape:
            one, other = one[image_tokens.bool()], other[image_tokens.bool()]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("with_loss", [False, True])
@pytest.mark.parametrize(("case", "stock"), [("dual", SiglipModel), ("dual_naflex", Siglip2Model)])
def test_outputs_have_the_order_of_the_stock_class(case, stock, with_loss, tmp_path):
    model, inputs = build(case), {**inputs_for(case), "return_loss": with_loss}
    model.save_pretrained(tmp_path)
    expected = stock.from_pretrained(tmp_path).eval()(**inputs)
    found = model(**inputs)
    left_out = ("logits_per_image", "logits_per_text") if with_loss else ()  # of a loss the matrix is not built
    keys = [key for key in expected if key not in left_out]
    assert list(found) == keys
    assert ("loss" in found, "logits_per_image" in found) == (with_loss, not with_loss)
    values = [expected[key] for key in keys]
    wanted = [value if torch.is_tensor(value) else value.to_tuple() for value in values]
    assert_equal(found.to_tuple(), wanted, inputs.get("pixel_attention_mask"))
    assert_equal(model(**inputs, return_dict=False), found.to_tuple())
    assert found[0] is (found.loss if with_loss else found.logits_per_image)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_outputs_as_mapping_tuple_and_pytree(case):
    model, inputs = build(case), inputs_for(case)
    output = model(**inputs)
    assert [field for field in type(output).__dataclass_fields__ if output.get(field) is not None] == list(output)
    leaves, spec = pytree.tree_flatten(output)
    again = pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(output)
    assert list(again) == list(output)
    assert_equal(again, output)
    assert_equal(pickle.loads(pickle.dumps(output)), output)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert_equal(as_tuple, output.to_tuple())
    model.config.return_dict = False
    assert_equal(model(**inputs), output.to_tuple())


@torch.no_grad()
@pytest.mark.parametrize("asked_by", ["argument", "configuration"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_attentions(case, asked_by):
    model, inputs = build(case, attn_implementation="eager"), inputs_for(case)
    plain = model(**inputs)
    assert all(tower.hidden_states is None and tower.attentions is None for tower in towers(plain))
    asked = {"output_hidden_states": True, "output_attentions": True}
    if asked_by == "configuration":
        for config in (model.config, *(getattr(model.config, f"{kind}_config", None) for kind in ("text", "vision"))):
            for name, value in asked.items() if config is not None else ():
                setattr(config, name, value)
        asked = {}
    output = model(**inputs, **asked)
    for tower in towers(output):
        last = tower.hidden_states[-1]
        tokens = last.shape[1]
        assert [tuple(state.shape) for state in tower.hidden_states] == [(2, tokens, WIDTH)] * (LAYERS + 1)
        assert [tuple(weights.shape) for weights in tower.attentions] == [(2, HEADS, tokens, tokens)] * LAYERS
        for weights in tower.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, tokens))
    assert_equal(
        [tower.last_hidden_state for tower in towers(output) if "last_hidden_state" in tower],
        [tower.last_hidden_state for tower in towers(plain) if "last_hidden_state" in tower],
        inputs.get("pixel_attention_mask"),
    )


@pytest.mark.parametrize("case", CASES)
def test_input_embeddings_are_found_and_replaced(case):
    model = build(case)
    found = model.get_input_embeddings()
    assert isinstance(found, nn.Embedding if "dual" in case or "text" in case else (nn.Conv2d, nn.Linear))
    other = copy.deepcopy(found)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert any(module is other for module in model.modules())
    assert model.get_output_embeddings() is None


@torch.no_grad()
@pytest.mark.parametrize("case", TEXTS)
def test_the_vocabulary_grows_and_is_saved(case, tmp_path):
    model, inputs = build(case), inputs_for(case)
    before = model(**inputs)
    model.resize_token_embeddings(120, mean_resizing=False)
    text = getattr(model.config, "text_config", model.config)
    assert (text.vocab_size, model.get_input_embeddings().num_embeddings) == (120, 120)
    assert_equal(model(**inputs), before)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.get_input_embeddings().num_embeddings == 120
    inputs["input_ids"] = inputs["input_ids"] + 20
    assert_equal(again(**inputs), model(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_saved_loaded_copied_and_cast(case, tmp_path):
    model, inputs = build(case), inputs_for(case)
    expected = model(**inputs)
    model.save_pretrained(tmp_path / "one", max_shard_size="20KB")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 1
    again, report = type(model).from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not any(report.values())
    assert not again.training
    weights = model.state_dict()
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    again.save_pretrained(tmp_path / "two", max_shard_size="20KB")  # what was loaded has the same names and settings
    settings = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("one", "two")]
    for one in settings:
        for tower in ("text_config", "vision_config"):  # a model that was built has the type of its weights at the top
            one.get(tower, {}).pop("dtype", None)
    assert settings[0] == settings[1]
    index = [json.loads(next((tmp_path / folder).glob("*.index.json")).read_text()) for folder in ("one", "two")]
    assert {name.removeprefix("vision_model.").removeprefix("text_model.") for name in index[0]["weight_map"]} == {
        name.removeprefix("vision_model.").removeprefix("text_model.") for name in index[1]["weight_map"]
    }
    for other in (again, copy.deepcopy(model), type(model).from_pretrained(tmp_path / "two", device_map="cpu")):
        assert_equal(other.eval()(**inputs), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = type(model).from_pretrained(tmp_path / "one", dtype=dtype)
        assert half.dtype == dtype
        assert {parameter.dtype for parameter in half.parameters()} == {dtype}
        assert half.config.dtype == dtype
        floats = [leaf for leaf in pytree.tree_leaves(half.eval()(**inputs)) if leaf.is_floating_point()]
        assert all(leaf.isfinite().all() for leaf in floats)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_loaded_onto_devices_by_a_map(case, tmp_path):
    model, inputs = build(case), inputs_for(case)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, device_map="auto").eval()
    assert_equal(again(**inputs), model(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_attention_backends_agree(case, tmp_path):
    inputs = inputs_for(case)
    eager, sdpa = (build(case, attn_implementation=backend) for backend in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    assert_equal(sdpa(**inputs), eager(**inputs))
    eager.set_attn_implementation("sdpa")
    assert_equal(eager(**inputs), sdpa(**inputs))
    eager.save_pretrained(tmp_path)
    assert type(eager).from_pretrained(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_changes_no_gradient(case):
    model, inputs = build(case).train(), inputs_for(case)

    def gradients() -> list[torch.Tensor | None]:
        model.zero_grad()
        output = model(**inputs)
        loss = output.get("loss")
        first = [leaf for leaf in pytree.tree_leaves(output) if leaf.requires_grad]
        (sum(leaf.square().sum() for leaf in first) if loss is None else loss).backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients()
    assert all(gradient is not None for gradient in expected) or case == "dual_lit"  # ViT's mask token
    # transformers 5.23 calls it so, and warns of the old name
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")()
    assert model.is_gradient_checkpointing
    for found, wanted in zip(gradients(), expected):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted)
    getattr(model, f"{kind}_checkpointing_disable")()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("case", CASES)
def test_tying_finds_nothing_to_tie(case):
    model = build(case)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.tie_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(pointers) == len(set(pointers))


@pytest.mark.parametrize("case", CASES)
def test_configurations_go_round(case, tmp_path):
    config = build(case).config
    same = type(config).from_dict(config.to_dict())
    assert same.to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert json.loads(config.to_json_string(use_diff=False))["model_type"] == config.model_type
    config.save_pretrained(tmp_path, native=False)
    left_out = ("_name_or_path", "auto_map", "custom_pipelines", "transformers_version")
    found, wanted = (
        {key: value for key, value in one.to_dict().items() if key not in left_out}
        for one in (type(config).from_pretrained(tmp_path), config)
    )
    assert found == wanted
    assert type(config)().to_dict() is not None
