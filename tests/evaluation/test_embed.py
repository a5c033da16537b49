"""Embeddings of our model and of a stock one, and that evaluation leaves the model as it was."""

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.evaluation.embed import embed_images, embed_texts, evaluating
from support.models import TINY


TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8, "projection_size": 32}
VISION = {**TINY, "image_size": 32, "patch_size": 16, "attention_dropout": 0.5}


@pytest.fixture(params=[(SiglipExtConfig, SiglipExtModel), (SiglipConfig, SiglipModel)], ids=["ext", "stock"])
def model(request):
    config, model = request.param
    torch.manual_seed(0)
    return model(config(text_config=TEXT, vision_config=VISION))


def test_embeddings_are_those_of_forward_and_of_unit_length(model):
    pixels, ids = torch.randn(5, 3, 32, 32), torch.randint(0, 50, (5, 8))
    images = embed_images(model, pixels.split(2))
    texts = embed_texts(model, [{"input_ids": ids[:3]}, {"input_ids": ids[3:]}])
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, return_loss=False)
    torch.testing.assert_close(images, expected.image_embeds)
    torch.testing.assert_close(texts, expected.text_embeds)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(5))
    assert not images.requires_grad


def test_half_precision_comes_back_as_float32(model):
    embeds = embed_images(model.bfloat16(), [torch.randn(2, 3, 32, 32).bfloat16()])
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))


def test_every_module_returns_to_its_own_mode(model):
    model.train()
    model.vision_model.eval()
    before = [module.training for module in model.modules()]

    def fail_within():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_within()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_no_batches_is_an_error(model):
    with pytest.raises(ValueError, match="nothing to embed"):
        embed_images(model, [])
