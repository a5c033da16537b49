"""NaFlex towers: parity with the stock class, resized positions, masks and malformed inputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, Siglip2Config, Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtVisionConfig,
    SiglipExtVisionModel,
)
from modeling_siglip_ext.positions import interpolate_positions, resize_grids_together, resize_positions, sincos2d
from support.models import TINY


VISION = {**TINY, "naflex": True, "num_patches": 16, "patch_size": 4}
TEXT = {**TINY, "vocab_size": 99, "max_position_embeddings": 8}
GRIDS = torch.tensor([[4, 4], [3, 5], [2, 8], [1, 16], [6, 2], [2, 2]])
LENGTH = 18


def naflex_inputs(grids: torch.Tensor = GRIDS, length: int = LENGTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(length) < grids.prod(1, keepdim=True)).long()
    patches = torch.randn(len(grids), length, 48, generator=generator) * mask[..., None]
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grids}


def randomize(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def stock() -> Siglip2Model:
    text, vision = dict(TEXT), {**TINY, "num_patches": 16, "patch_size": 4}
    return randomize(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)))


@pytest.fixture
def folder(stock, tmp_path):
    stock.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_same_outputs_and_gradients_as_the_stock_class(stock, folder, attention):
    ours = SiglipExtModel.from_pretrained(folder, attn_implementation=attention).eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    inputs = naflex_inputs() | {"input_ids": torch.randint(99, (len(GRIDS), 8))}
    stock.set_attn_implementation(attention)
    expected = stock(**inputs, return_loss=True, output_hidden_states=True)
    found = ours(**inputs, return_loss=True, output_hidden_states=True)
    valid = inputs["pixel_attention_mask"].bool()
    for a, b in zip(found.vision_model_output.hidden_states, expected.vision_model_output.hidden_states):
        torch.testing.assert_close(a[valid], b[valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    stock.zero_grad()
    expected.loss.backward()
    found.loss.backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), stock.named_parameters()):
        torch.testing.assert_close(
            a.grad, b.grad, rtol=1e-4, atol=1e-5 * max(1.0, b.grad.abs().max().item()), msg=name
        )


def test_saved_in_stock_form(folder, tmp_path):
    SiglipExtModel.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    model, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(model) is Siglip2Model
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("padded", [False, True])  # the states of the layers are padded
@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_padding_changes_nothing_under_any_backend(attention, padded):
    config = SiglipExtVisionConfig(**VISION)
    torch.manual_seed(0)
    model = SiglipExtVisionModel._from_config(config, attn_implementation=attention).eval()
    inputs = naflex_inputs()
    spoiled = inputs["pixel_values"] + 100 * (1 - inputs["pixel_attention_mask"])[..., None]
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=padded).pooler_output
        found = model(**{**inputs, "pixel_values": spoiled}, output_hidden_states=padded).pooler_output
        alone = [
            model(inputs["pixel_values"][i : i + 1, : h * w], spatial_shapes=GRIDS[i : i + 1]).pooler_output
            for i, (h, w) in enumerate(GRIDS.tolist())
        ]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(alone), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["map", "mean", "max", "first"])
def test_the_mask_is_made_from_the_shapes_when_missing(pooling):
    torch.manual_seed(0)
    model = SiglipExtVisionModel(SiglipExtVisionConfig(**VISION, pooling=pooling)).eval()
    inputs = naflex_inputs()
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        inputs.pop("pixel_attention_mask")
        assert torch.equal(model(**inputs).pooler_output, expected)


def test_classifier_averages_valid_patches_as_the_stock_class(tmp_path):
    from transformers import Siglip2ForImageClassification

    vision = {**TINY, "num_patches": 16, "patch_size": 4}
    stock = randomize(Siglip2ForImageClassification(Siglip2Config(text_config=TEXT, vision_config=vision)))
    stock.save_pretrained(tmp_path)
    ours = SiglipExtForImageClassification.from_pretrained(tmp_path).eval()
    inputs = naflex_inputs()
    torch.testing.assert_close(ours(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-5)


# Grids of one column are left out: torch's antialiased resize on a CPU gives all their rows the same value.
@given(
    side=st.integers(1, 20),
    grids=st.lists(st.tuples(st.integers(1, 40), st.integers(2, 40)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_resized_positions_equal_the_stock_loop(side, grids, seed):
    table = torch.rand(side**2, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    shapes = torch.tensor(grids)
    length = int(shapes.prod(1).max()) + 3
    resize = Siglip2VisionEmbeddings.resize_positional_embeddings
    stock = resize(table.view(side, side, -1), shapes, length)
    square = table.double().T.view(1, -1, side, side)
    exact = torch.zeros(len(grids), length, 6, dtype=torch.float64)
    for row, grid in zip(exact, grids):
        resized = F.interpolate(square, grid, mode="bilinear", align_corners=False, antialias=True)[0].flatten(1).T
        row[:] = resized[0]
        row[: len(resized)] = resized
    # both have weights in float32; how torch rounds the stock class' changes from version to version
    torch.testing.assert_close(stock.double(), exact, rtol=0, atol=1e-5)
    trained = resize_positions(table.clone().requires_grad_(), shapes, length).detach()
    for found in (resize_positions(table, shapes, length), trained, resize_grids_together(table, shapes, length)):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("resize", [resize_positions, resize_grids_together], ids=["on a CPU", "elsewhere"])
def test_autocast_does_not_round_positions(resize):
    table, shapes = torch.randn(64, 6), torch.tensor([[5, 9], [12, 4]])
    expected = resize(table, shapes, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize(table, shapes, 48), expected)


def test_a_column_is_resized_as_a_row_of_the_transposed_table():
    table = torch.rand(16, 6)
    resize = Siglip2VisionEmbeddings.resize_positional_embeddings
    expected = resize(table.view(4, 4, 6).transpose(0, 1), torch.tensor([[1, 9]]), 9)
    torch.testing.assert_close(resize_positions(table, torch.tensor([[9, 1]]), 9), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", [resize_positions, resize_grids_together])
def test_the_position_table_learns_as_in_the_stock_loop(resize):
    table = torch.randn(16, 6, requires_grad=True)
    weights = torch.randn(len(GRIDS), LENGTH, 6)
    stock = Siglip2VisionEmbeddings.resize_positional_embeddings(table.view(4, 4, -1), GRIDS, LENGTH)
    (expected,) = torch.autograd.grad((stock * weights).sum(), table)
    (found,) = torch.autograd.grad((resize(table, GRIDS, LENGTH) * weights).sum(), table)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_inference_first_does_not_break_training_after():
    table = torch.randn(49, 6, requires_grad=True)
    shapes = torch.tensor([[5, 9]])
    with torch.inference_mode():
        resize_positions(table, shapes, 45)
    resize_positions(table, shapes, 45).sum().backward()
    assert table.grad is not None


def test_sincos_positions_are_distinct_and_bounded():
    table = sincos2d(5, 16)
    assert table.shape == (25, 16)
    assert table.abs().max() <= 1
    assert len(torch.unique(table, dim=0)) == 25


def test_interpolation_to_the_same_grid_is_the_identity():
    table = torch.randn(16, 6)
    torch.testing.assert_close(interpolate_positions(table, 4, 4), table, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_shapes": None}, "needs spatial_shapes"),
        ({"spatial_shapes": torch.tensor([[4, 5]] * 6)}, r"image 0 has a grid of \[4, 5\].*hold 18"),
        ({"spatial_shapes": torch.tensor([[4, 0]] * 6)}, r"image 0 has a grid of \[4, 0\]"),
        ({"spatial_shapes": GRIDS.float()}, "integers"),
        ({"spatial_shapes": GRIDS[:2]}, r"\(6, 2\)"),
        ({"spatial_shapes": GRIDS.flip(0)}, "contradicts its spatial_shapes"),
        ({"pixel_attention_mask": torch.ones(6, LENGTH)}, "image 0 marks 18 patches"),
        ({"pixel_attention_mask": torch.ones(6, 5)}, r"pixel_attention_mask is \(6, 5\)"),
        ({"pixel_values": torch.zeros(6, LENGTH, 27)}, r"takes patches \(B, L, 48\)"),
        ({"pixel_values": torch.zeros(6, 3, 32, 32)}, r"takes patches"),
    ],
)
def test_contradicting_inputs_are_refused(change, message):
    model = SiglipExtVisionModel(SiglipExtVisionConfig(**VISION))
    with pytest.raises(ValueError, match=message):
        model(**{**naflex_inputs(), **change})


def test_a_fixed_tower_refuses_naflex_inputs():
    model = SiglipExtVisionModel(SiglipExtVisionConfig(**TINY, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match="this tower's size is fixed"):
        model(torch.zeros(1, 3, 32, 32), spatial_shapes=torch.tensor([[4, 4]]))


def test_naflex_and_image_size_exclude_each_other():
    with pytest.raises(ValueError, match="leave image_size out"):
        SiglipExtConfig(vision_config={"naflex": True, "image_size": 224})
