"""Other initial values: what they change and by how much, that they change nothing else, and that a place is kept."""

import copy

import pytest
import torch

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.evaluation.metrics.dense import position_r2
from modeling_siglip_ext.training.components.initial_values import InitialValues, set_initial_values
from support.models import make_config


TOWER = {"image_size": 48, "patch_size": 8, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}


def model(**vision) -> SiglipExtModel:
    torch.manual_seed(0)
    return SiglipExtModel(make_config({"projection_size": 64}, {**TOWER, **vision})).eval()


def test_what_changes():
    before = model()
    after = copy.deepcopy(before)
    set_initial_values(after, InitialValues(position_std=0.5, patch_scale=3.0, residual_scale=0.2))
    for (name, one), other in zip(before.named_parameters(), after.parameters()):
        factor = 1.0
        if name == "vision_model.embeddings.position_embedding.weight":
            factor = 0.5 / 64**-0.5
        elif name == "vision_model.embeddings.patch_embedding.weight":
            factor = 3.0
        elif name.startswith("vision_model.encoder") and name.endswith(("out_proj.weight", "fc2.weight")):
            factor = 0.2
        torch.testing.assert_close(other, one * factor)
    assert after.vision_model.embeddings.position_embedding.weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_siglips_own_values_are_the_default():
    before = model()
    after = copy.deepcopy(before)
    set_initial_values(after, InitialValues())
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters()))


@torch.no_grad()
def test_tokens_keep_their_place():
    pixels = torch.rand(200, 3, 1, 1) * 2 - 1 + 0.1 * torch.randn(200, 3, 48, 48)
    kept = {}
    for values in (InitialValues(), InitialValues(position_std=0.7, patch_scale=3.0, residual_scale=0.2)):
        tower = model()
        set_initial_values(tower, values)
        kept[values] = position_r2(tower.get_image_features(pixel_values=pixels).last_hidden_state)
    siglips, other = kept.values()
    assert siglips < 0.5 < 0.7 < other


def test_errors():
    with pytest.raises(ValueError, match="residual_scale must be positive"):
        InitialValues(residual_scale=0.0)
    with pytest.raises(ValueError, match="learned positions"):
        set_initial_values(model(position_embedding_type="sincos2d"), InitialValues(position_std=0.5))
