"""Random layouts of big_vision: there and back is the identity, whatever the sizes, poolings, names and containers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig
from modeling_siglip_ext.conversion.big_vision.checkpoint import plan_big_vision
from modeling_siglip_ext.conversion.big_vision.config import describe
from modeling_siglip_ext.conversion.big_vision.layouts import modern, parameters, stacked_towers
from modeling_siglip_ext.conversion.big_vision.names import rules
from modeling_siglip_ext.conversion.checkpoint import Choices
from modeling_siglip_ext.conversion.containers.arrays import LazyArray
from modeling_siglip_ext.conversion.containers.npz import read_npz
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.model_folder.folder import choose_form
from modeling_siglip_ext.conversion.name_map import array_shapes, from_torch, to_torch
from modeling_siglip_ext.conversion.plan import check_shapes


@dataclass
class Layout:
    config: SiglipExtConfig | SiglipExtVisionConfig
    stacked: frozenset[str]
    prefix: str
    dtype: torch.dtype
    train_state: bool


def tower(draw: st.DrawFn) -> dict[str, int]:
    heads = draw(st.integers(1, 3))
    return {
        "hidden_size": heads * 4 * draw(st.integers(1, 2)),
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 24)),
    }


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    naflex = draw(st.booleans())
    grid, patch_size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    pooling = draw(st.sampled_from(("map", "mean", "max", "first") + (() if naflex else ("cls",))))
    vision = SiglipExtVisionConfig(
        **tower(draw),
        patch_size=patch_size,
        naflex=naflex,
        image_size=None if naflex else grid * patch_size,
        num_patches=grid**2 if naflex else None,
        pooling=pooling,
        pre_logits=draw(st.booleans()),
        projection_size=draw(st.sampled_from([None, 5, 8])),
        position_embedding_type="learned" if naflex else draw(st.sampled_from(["learned", "sincos2d"])),
    )
    embedding = vision.projection_size or vision.hidden_size  # of both towers
    kind = draw(st.sampled_from(["siglip", "bert", "none"]))
    config: SiglipExtConfig | SiglipExtVisionConfig = vision
    loss = draw(st.sampled_from([{}, {"loss_type": "softmax", "logit_bias_init": None}]))
    if kind == "siglip":
        sizes = tower(draw)
        head = sizes["hidden_size"] != embedding or draw(st.booleans())
        text = SiglipExtTextConfig(
            **sizes,
            vocab_size=draw(st.integers(2, 9)),
            max_position_embeddings=draw(st.integers(1, 6)),
            pooling=draw(st.sampled_from(["last", "first", "mean", "max", "map"])),
            use_head=head,
            projection_size=embedding if head else None,
        )
        config = SiglipExtConfig(vision_config=vision, text_config=text, **loss)
    elif kind == "bert":
        text = BertConfig(
            **tower(draw),
            vocab_size=draw(st.integers(2, 9)),
            max_position_embeddings=draw(st.integers(1, 6)),
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-12,
            pad_token_id=0,
        )
        size = embedding if text.hidden_size != embedding or draw(st.booleans()) else None
        config = SiglipExtConfig(
            vision_config=vision, text_config=text, text_pooling="first", text_projection_size=size, **loss
        )
    return Layout(
        config,
        draw(st.sampled_from([frozenset(), frozenset({"img"}), frozenset({"txt"}), frozenset({"img", "txt"})])),
        draw(st.sampled_from(["params/", "opt/target/", ""])),
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        draw(st.booleans()),
    )


def choices_of(config) -> Choices:
    vision = config if isinstance(config, SiglipExtVisionConfig) else config.vision_config
    text = getattr(config, "text_config", None)
    bert = isinstance(text, BertConfig)
    return Choices(
        image_size=vision.image_size,
        image_pooling=vision.pooling,
        text_pooling=getattr(text, "pooling", None),
        text_heads=text.num_attention_heads if bert else None,
    )


def make(layout: Layout) -> dict[str, LazyArray]:
    """The container that big_vision would write, filled with noise."""
    one_tower = isinstance(layout.config, SiglipExtVisionConfig)
    with torch.device("meta"):
        model = AutoModel.from_config(layout.config)
    shapes = {
        f"vision_model.{name}" if one_tower else name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    arrays = {}
    for name, shape in array_shapes(rules(layout.config, layout.stacked), shapes).items():
        tensor = torch.randn(shape).to(layout.dtype)
        arrays[layout.prefix + name] = LazyArray(shape, lambda tensor=tensor: tensor, layout.dtype)
        if layout.train_state and layout.prefix:  # an optimiser repeats the names
            other = "opt/1/" if layout.prefix == "params/" else "opt/state/param_states/"
            arrays[f"{other}{name}"] = LazyArray(shape, lambda: None, torch.float32)
    return arrays


@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_there_and_back_is_the_identity(layout):
    arrays = make(layout)
    params = modern(parameters(arrays))
    found = describe(params, choices_of(layout.config))
    plan = plan_big_vision(params, found, found)
    assert not plan.left_out
    # one block can be stacked or not, and looks the same in all but its names
    table = rules(found, stacked_towers(params))
    tensors = dict(to_torch(plan.rules, lambda name: params[name].load()))
    back = dict(from_torch(table, tensors))
    assert set(back) == set(params)
    for name, array in back.items():
        assert torch.equal(array, params[name].load()), name
    with torch.device("meta"):
        model = AutoModel.from_config(found)
    shapes = {name.removeprefix("vision_model."): tensor.shape for name, tensor in model.state_dict().items()}
    if not isinstance(found, SiglipExtVisionConfig):
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    else:
        tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    choose_form(found, None)


def test_sums_that_the_original_loader_takes():
    vision = SiglipExtVisionConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
        image_size=6, patch_size=2, pooling="cls",
    )  # fmt: skip
    arrays = make(Layout(vision, frozenset(), "", torch.float32, False))
    table = torch.randn(1, 10, 8)
    arrays["img/Transformer/posembed_input/pos_embedding"] = LazyArray((1, 10, 8), lambda: table)
    token = arrays["img/cls"].load()
    del arrays["img/pos_embedding"]
    params = modern(arrays)
    np.testing.assert_array_equal(params["img/cls"].load().numpy(), (token + table[:, :1]).numpy())
    assert params["img/pos_embedding"].shape == (1, 9, 8)
    assert torch.equal(params["img/pos_embedding"].load(), table[:, 1:])


BASE = {
    case: modern(parameters(read_npz(Path(__file__).parents[2] / f"fixtures/big_vision/{case}/checkpoint.npz")))
    for case in ("siglip1_mu16", "siglip2_naflex", "siglip_scan", "lit_bert")
}


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(sorted(BASE)), data=st.data())
def test_shapes_that_contradict_each_other_give_one_clear_error(case, data):
    """Arrays of a sound file get other shapes, or vanish: nothing but a ValueError may come out of it."""
    params = dict(BASE[case])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(params)))
        shape = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 5), max_size=4).map(tuple)))
        if shape is None:
            del params[name]
        else:
            params[name] = LazyArray(shape, lambda: pytest.fail("nothing is read"))
    try:
        config = describe(params, Choices(text_heads=4))
        plan = plan_big_vision(params, config, config)
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_shapes(plan, params, shapes)
    except ValueError as error:
        assert len(str(error)) > 20  # noqa: PT017 - any other error fails the test


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("siglip_scan", "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"),
        ("lit_bert", "txt/BertEncoder_0/embedder/embedders_token_ids/embedding"),
    ],
)
def test_an_array_without_elements(case, name):
    params = dict(BASE[case])
    params[name] = LazyArray((0,) * len(params[name].shape), lambda: pytest.fail("nothing is read"))
    with pytest.raises(CheckpointError, match="no elements"):
        describe(params, Choices(text_heads=4))
