"""Scales folded into the norms, against the model before and against the formula."""

import copy

import pytest
import torch
from transformers import SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.conversion.export.smoothquant import balance, foldable, smooth
from support.models import TINY_NAFLEX, TINY_TEXT, TINY_VISION, make_config


def inputs(model: SiglipExtModel) -> dict[str, torch.Tensor]:
    vision, text = model.config.vision_config, model.config.text_config
    found = {"input_ids": torch.randint(0, text.vocab_size, (6, text.max_position_embeddings))}
    if vision.naflex:
        grids = torch.tensor([[4, 4], [2, 7], [1, 3], [5, 2], [3, 3], [1, 1]])
        return found | {"pixel_values": torch.randn(6, 16, 3 * vision.patch_size**2), "spatial_shapes": grids}
    return found | {"pixel_values": torch.randn(6, 3, vision.image_size, vision.image_size)}


def with_outliers(model: SiglipExtModel) -> None:
    """One channel of every norm fifty times as large, and the columns that read it as much smaller."""
    with torch.no_grad():
        for norm, readers in foldable(model):
            norm.weight[3] *= 50
            norm.bias[3] *= 50
            for reader in readers:
                reader.weight[:, 3] /= 50


def randomize(model: SiglipExtModel) -> None:
    with torch.no_grad():
        for norm, _ in foldable(model):
            norm.weight.uniform_(0.2, 2)
            norm.bias.normal_()


@pytest.mark.parametrize(
    "vision", [TINY_VISION, TINY_NAFLEX, {**TINY_VISION, "pooling": "cls"}], ids=["fixed", "naflex", "cls"]
)
@torch.no_grad()
def test_the_function_stays_to_the_last_bit(vision):
    model = SiglipExtModel(SiglipExtConfig(text_config=TINY_TEXT, vision_config=vision)).eval()
    randomize(model)
    with_outliers(model)
    batch = inputs(model)
    before = model(**batch)
    smoothed = copy.deepcopy(model)
    assert smooth(smoothed, [batch]) == 2 * 2 * 2 + ("pooling" not in vision)  # two a layer, one of the MAP head
    after = smoothed(**batch)
    for name in ("image_embeds", "text_embeds"):
        assert torch.equal(after[name], before[name])
    assert smoothed.state_dict().keys() == model.state_dict().keys()
    assert not torch.equal(smoothed.text_model.encoder.layers[0].layer_norm1.weight, torch.ones(32))


@torch.no_grad()
def test_the_same_in_the_stock_class(tmp_path):
    model = SiglipExtModel(make_config()).eval()
    with_outliers(model)
    batch = inputs(model)
    before = model(**batch).image_embeds
    smooth(model, [batch])
    model.save_pretrained(tmp_path)
    after = SiglipModel.from_pretrained(tmp_path)(**batch).image_embeds
    assert (after - before).abs().max() < 2e-7


@torch.no_grad()
def test_outliers_are_gone_from_the_activations():
    model = SiglipExtModel(make_config()).eval()
    with_outliers(model)
    batch = inputs(model)
    norm = model.text_model.encoder.layers[1].layer_norm2

    def spread() -> float:
        found = []
        hook = norm.register_forward_hook(lambda module, inputs, output: found.append(output.abs().amax(dim=(0, 1))))
        model(**batch)
        hook.remove()
        return float(found[0].max() / found[0].median())

    before = spread()
    smooth(model, [batch])
    assert before > 30
    assert spread() < 8


def test_factors_are_the_nearest_powers_of_two():
    activations, weights = torch.tensor([8.0, 50.0, 0.0, 1.0, 1e-20]), torch.tensor([0.5, 0.01, 1.0, 0.0, 1.0])
    expected = [4.0, 64.0, 1.0, 1.0, 2.0**-10]  # sqrt(8 / 0.5) = 4, sqrt(50 / 0.01) = 70.7; the last is cut
    assert balance(activations, weights).tolist() == expected


@torch.no_grad()
def test_a_tower_without_inputs_stays():
    model = SiglipExtModel(make_config()).eval()
    before = copy.deepcopy(model.vision_model.state_dict())
    assert smooth(model.text_model, [{"input_ids": inputs(model)["input_ids"]}]) == 4
    assert smooth(model, []) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.vision_model.state_dict().items())


@torch.no_grad()
def test_training_modes_stay():
    model = SiglipExtModel(make_config())
    model.train()
    model.text_model.eval()
    smooth(model, [inputs(model)])
    assert model.training
    assert not model.text_model.training
