"""NaFlex images in one row: equal to the padded tower and the stock class, image by image, under whatever runs it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel, modeling_flash_attention_utils
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from modeling_siglip_ext import SiglipExtModel, SiglipExtVisionConfig, SiglipExtVisionModel, positions
from modeling_siglip_ext.naflex import naflex_layout
from modeling_siglip_ext.packing import UnpaddedOutput
from modeling_siglip_ext.positions import resize_positions_in_a_row
from support.models import TINY, TINY_NAFLEX, make_config


GRIDS = [(4, 4), (3, 5), (2, 8), (1, 15), (6, 2), (3, 5), (1, 1)]  # 3 x 5 twice, and two other grids of 16 and 15


def naflex_inputs(grids=GRIDS, length=18, dtype=torch.float32) -> dict[str, torch.Tensor]:
    shapes = torch.tensor(grids)
    mask = (torch.arange(length) < shapes.prod(1, keepdim=True)).long()
    patches = torch.randn(len(grids), length, 48, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return {"pixel_values": patches * mask[..., None], "pixel_attention_mask": mask, "spatial_shapes": shapes}


def make_tower(attention: str = "sdpa", **fields) -> SiglipExtVisionModel:
    torch.manual_seed(0)
    config = SiglipExtVisionConfig(**{**TINY_NAFLEX, **fields})
    return SiglipExtVisionModel._from_config(config, attn_implementation=attention).eval()


def shapes_seen(tower: nn.Module, **inputs) -> list[tuple[int, ...]]:
    """The shapes of the states in the first layer, in order of the calls."""
    seen: list[tuple[int, ...]] = []
    hook = tower.encoder.layers[0].mlp.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    try:
        tower(**inputs)
    finally:
        hook.remove()
    return seen


def gradients(tower: nn.Module, weights: torch.Tensor, **inputs) -> dict[str, torch.Tensor]:
    tower.zero_grad()
    (tower(**inputs).pooler_output * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}


def assert_same_gradients(found: dict, expected: dict, tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        atol = tolerance * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=name)


# ---- what is packed


@pytest.mark.parametrize(
    ("grids", "length", "shape"),
    [
        (GRIDS, 18, (1, 90, 32)),
        ([(4, 4), (2, 8)], 16, (2, 16, 32)),  # nothing is padded
        ([(4, 4), (2, 8)], 18, (1, 32, 32)),
        ([(3, 5)], 256, (1, 15, 32)),
    ],
)
def test_rows_hold_no_padding(grids, length, shape):
    assert shapes_seen(make_tower(), **naflex_inputs(grids, length)) == [shape]


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_states_of_layers_come_padded_as_the_stock_classes_give_them(option):
    tower, inputs = make_tower("eager"), naflex_inputs()
    assert shapes_seen(tower, **inputs, **{option: True}) == [(7, 18, 32)]
    expected = tower(**inputs)
    setattr(tower.config, option, True)
    assert shapes_seen(tower, **inputs) == [(7, 18, 32)]
    output = tower(**inputs)
    assert len(output[option.removeprefix("output_")]) == 3 - (option == "output_attentions")
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=0, atol=1e-6)


# ---- it gives the same


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_vectors_and_tokens_equal_the_stock_class(attention, tmp_path):
    torch.manual_seed(0)
    stock = Siglip2VisionModel(Siglip2VisionConfig(**{**TINY, "num_patches": 16, "patch_size": 4})).eval()
    for parameter in stock.parameters():
        nn.init.normal_(parameter, std=0.2)
    stock.save_pretrained(tmp_path)
    ours = SiglipExtVisionModel.from_pretrained(tmp_path, attn_implementation=attention).eval()
    inputs = naflex_inputs()
    with torch.no_grad():
        found, expected = ours(**inputs), stock(**inputs)
    valid = inputs["pixel_attention_mask"].bool()
    assert found.last_hidden_state.shape == expected.last_hidden_state.shape
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.last_hidden_state[valid], expected.last_hidden_state[valid], rtol=0, atol=1e-5)
    assert not found.last_hidden_state[~valid].any()
    weights = torch.randn_like(expected.pooler_output)
    assert_same_gradients(gradients(ours, weights, **inputs), gradients(stock, weights, **inputs), 1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradients_equal_those_of_padded_images(dtype, tolerance, attention):
    tower, inputs = make_tower(attention).to(dtype), naflex_inputs(dtype=dtype)
    inputs["pixel_values"].requires_grad_()
    weights = torch.randn(len(GRIDS), 32, dtype=dtype)
    found, of_pixels = gradients(tower, weights, **inputs), inputs["pixel_values"].grad.clone()
    inputs["pixel_values"].grad = None
    expected = gradients(tower, weights, **inputs, output_hidden_states=True)
    assert_same_gradients(found, expected, tolerance)
    torch.testing.assert_close(of_pixels, inputs["pixel_values"].grad, rtol=0, atol=tolerance)


POOLINGS = ["map", "mean", "max", "first", "none"]


@given(
    grids=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=6),
    spare=st.integers(0, 3),
    pooling=st.sampled_from(POOLINGS),
    projected=st.booleans(),
    attention=st.sampled_from(["eager", "sdpa"]),
)
@settings(max_examples=40, deadline=None)
def test_an_image_in_a_row_is_the_image_alone(grids, spare, pooling, projected, attention):
    length = max(height * width for height, width in grids) + spare
    tower = make_tower(attention, pooling=pooling, projection_size=24 if projected else None)
    inputs = naflex_inputs(grids, length)
    with torch.no_grad():
        stock_shaped, row = tower(**inputs), tower(**inputs, unpadded_output=True)
        assert isinstance(row, UnpaddedOutput)
        assert row.cu_seqlens.dtype == torch.int32
        assert row.cu_seqlens.tolist() == [0, *torch.tensor(grids).prod(1).cumsum(0).tolist()]
        for image, (height, width) in enumerate(grids):
            patches = inputs["pixel_values"][image : image + 1, : height * width]
            alone = tower(patches, spatial_shapes=torch.tensor([[height, width]]))
            place = slice(*row.cu_seqlens[image : image + 2].tolist())
            for found in (stock_shaped.last_hidden_state[image, : height * width], row.last_hidden_state[place]):
                torch.testing.assert_close(found, alone.last_hidden_state[0], rtol=0, atol=1e-5)
            if alone.pooler_output is None:
                assert stock_shaped.pooler_output is None
                assert row.pooler_output is None
            elif pooling == "none":
                of_image = stock_shaped.pooler_output[image, : height * width]
                for found in (of_image, row.pooler_output[place]):
                    torch.testing.assert_close(found, alone.pooler_output[0], rtol=0, atol=1e-5)
            else:
                for output in (stock_shaped, row):
                    torch.testing.assert_close(output.pooler_output[image], alone.pooler_output[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grids", [GRIDS, [(4, 4), (2, 8)]])
def test_unpadded_output_however_it_was_computed(grids, padded):
    tower = make_tower(pooling="none", projection_size=24)
    inputs = naflex_inputs(grids, 16 if len(grids) == 2 else 18)
    valid = inputs["pixel_attention_mask"].bool()
    with torch.no_grad():
        expected = tower(**inputs)
        found = tower(**inputs, unpadded_output=True, output_hidden_states=padded)
    assert found.cu_seqlens.tolist() == [0, *valid.sum(1).cumsum(0).tolist()]
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state[valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output[valid], rtol=0, atol=1e-5)


def test_unpadded_output_of_a_fixed_tower_and_of_the_dual_model():
    fixed = SiglipExtModel(make_config()).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = fixed.get_image_features(images)
    found = fixed.get_image_features(images, unpadded_output=True)
    assert found.cu_seqlens.tolist() == [0, 16, 32, 48]
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state.flatten(0, 1))
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    model = SiglipExtModel(make_config(vision={**TINY_NAFLEX, "image_size": None})).eval()
    output = model(input_ids=torch.ones(2, 8, dtype=torch.long), **naflex_inputs(), unpadded_output=True)
    assert output.vision_model_output.last_hidden_state.shape == (90, 32)
    assert output.logits_per_image.shape == (7, 2)


# ---- flash attention: the kernels need a GPU, what they are called with does not


def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, dropout_p=0.0):
    """As `flash_attn_varlen_func`: (tokens, heads, width) with the bounds of the sequences."""
    assert not causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max()) == (max_seqlen_q, max_seqlen_k)
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k) == len(v)
    output = torch.empty_like(q)
    for query, key in zip(cu_seqlens_q.unfold(0, 2, 1).tolist(), cu_seqlens_k.unfold(0, 2, 1).tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[slice(*query)], k[slice(*key)]) * softmax_scale
        output[slice(*query)] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[slice(*key)])
    return output


def test_flash_attention_is_called_once_a_layer_with_the_bounds_of_the_images(monkeypatch):
    calls = []

    def counted(q, k, v, **kwargs):
        calls.append(tuple(q.shape))
        return varlen(q, k, v, **kwargs)

    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(
        modeling_flash_attention_utils, "_lazy_imports", lambda *args, **kwargs: (None, counted, None, None, None)
    )
    process = modeling_flash_attention_utils._lazy_define_process_function(varlen)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_define_process_function", lambda _: process)
    tower, inputs = make_tower(), naflex_inputs()
    with torch.no_grad():
        expected = tower(**inputs)
        tower.config._attn_implementation = "flash_attention_2"
        found = tower(**inputs)
    assert calls == [(90, 2, 16), (90, 2, 16), (7, 2, 16)]
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)


# ---- what users do with a tower


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_the_same_row(reentrant):
    tower, inputs, weights = make_tower().train(), naflex_inputs(), torch.randn(len(GRIDS), 32)
    expected = gradients(tower, weights, **inputs)
    tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:  # it needs an input that has a gradient
        tower.enable_input_require_grads()
    assert shapes_seen(tower, **inputs) == [(1, 90, 32)]
    assert_same_gradients(gradients(tower, weights, **inputs), expected, 1e-6)


# dynamo asks the states between layers for their gradient
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_take_rows_and_one_compilation_serves_many():
    tower, weights = make_tower(), torch.randn(len(GRIDS), 32)
    batches = [naflex_inputs(GRIDS[first:] + GRIDS[:first], 18) for first in range(3)]
    batches += [naflex_inputs([(height + 1, width + add) for height, width in GRIDS], 60) for add in range(4)]
    expected = [gradients(tower, weights, **inputs) for inputs in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for layer in tower.encoder.layers:
        layer.compile(backend="aot_eager", dynamic=True)
    graphs = set()
    for inputs, gradient in zip(batches, expected):
        assert_same_gradients(gradients(tower, weights, **inputs), gradient, 1e-5)
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 1, "a later batch was compiled anew"
    torch._dynamo.reset()


class Pooled(nn.Module):
    """The vector alone, for a tracer that takes tensors only."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.tower(*inputs).pooler_output


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_traced_tower_takes_other_grids():
    tower, inputs = make_tower(), naflex_inputs()
    with torch.no_grad():
        traced = torch.jit.trace(Pooled(tower), tuple(inputs.values()), check_trace=False)
        other = naflex_inputs([(height, 1) for height in (18, 2, 9, 4, 5, 6, 7)])
        for some in (inputs, other):
            torch.testing.assert_close(traced(*some.values()), tower(**some).pooler_output, rtol=0, atol=1e-5)


def test_lora_trains_packed():
    tower, inputs = make_tower(), naflex_inputs()
    # the MAP head's output layer takes no adapter, see `PoolingAttention`
    targets = r".*(q_proj|fc1|self_attn\.out_proj|patch_embedding)"
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    tuned = get_peft_model(tower, config)
    weights = torch.randn(len(GRIDS), 32)

    def of_adapters(**options) -> dict[str, torch.Tensor]:
        tuned.zero_grad()
        (tuned(**inputs, **options).pooler_output * weights).sum().backward()
        return {name: p.grad.clone() for name, p in tuned.named_parameters() if p.requires_grad}

    assert_same_gradients(of_adapters(), of_adapters(output_hidden_states=True), 1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_and_autocast_stay_near(attention, train):
    tower, inputs = make_tower(attention), naflex_inputs()
    with torch.no_grad():
        expected = tower(**inputs).pooler_output
    near = {"rtol": 0, "atol": 0.1}
    with torch.set_grad_enabled(train):
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(tower(**inputs).pooler_output.float(), expected, **near)
        found = tower.to(torch.bfloat16)(**inputs).pooler_output
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, **near)


def test_values_that_cannot_be_read_are_not_asked_for():
    patches, shapes = torch.empty(3, 18, 48, device="meta"), torch.empty(3, 2, dtype=torch.long, device="meta")
    layout = naflex_layout(patches, None, shapes, 48)
    assert isinstance(layout, torch.Tensor)
    assert (layout.device.type, layout.dtype, layout.shape) == ("meta", torch.bool, (3, 18))


# ---- unusual shapes


@pytest.mark.parametrize(
    "grids", [[(1, 1000), (1000, 1), (1, 1)], [(1000, 1)], [(1, 1)] * 3, [(1, 1)], [(1000, 1), (1, 1000)]]
)
def test_strips_and_single_patches(grids):
    tower, length = make_tower(), max(height * width for height, width in grids)
    inputs = naflex_inputs(grids, length)
    with torch.no_grad():
        found = tower(**inputs).pooler_output
        expected = tower(**inputs, output_hidden_states=True).pooler_output
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_shapes_on_another_integer_type_and_a_mask_of_floats():
    tower, inputs = make_tower(), naflex_inputs()
    expected = tower(**inputs).pooler_output
    inputs["spatial_shapes"] = inputs["spatial_shapes"].int()
    inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"].float()
    assert torch.equal(tower(**inputs).pooler_output, expected)


# ---- positions in a row


# Grids of one column are left out: torch's antialiased resize on a CPU gives all their rows the same value.
@given(
    side=st.integers(1, 9), grids=st.lists(st.tuples(st.integers(1, 12), st.integers(2, 12)), min_size=1, max_size=6)
)
@settings(max_examples=30, deadline=None)
def test_positions_in_a_row_equal_the_stock_loop(side, grids):
    table = torch.rand(side**2, 6, generator=torch.Generator().manual_seed(side)) * 2 - 1
    shapes = torch.tensor(grids)
    padded = Siglip2VisionEmbeddings.resize_positional_embeddings(table.view(side, side, -1), shapes, 144)
    expected = torch.cat([padded[image, : height * width] for image, (height, width) in enumerate(grids)])
    torch.testing.assert_close(resize_positions_in_a_row(table, grids), expected, rtol=0, atol=1e-6)
    trained = resize_positions_in_a_row(table.clone().requires_grad_(), grids)
    torch.testing.assert_close(trained.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_equal_grids_are_resized_once(train, monkeypatch):
    sizes, resize = [], positions.resize_longer_side

    def counted(half, side, height, width, out=None):
        sizes.append((height, width))
        return resize(half, side, height, width, out)

    monkeypatch.setattr(positions, "resize_longer_side", counted)
    resize_positions_in_a_row(torch.randn(16, 6, requires_grad=train), GRIDS)
    assert sorted(sizes) == sorted(set(GRIDS))
