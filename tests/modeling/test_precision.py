"""What a GPU is given: attention without a mask, and a loss head in float32 whatever autocast says."""

import pytest
import torch
from torch.nn import functional as F

from modeling_siglip_ext import SiglipExtModel
from support.models import make_config


def inputs(count: int = 4) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(2, 99, (count, 8)), "pixel_values": torch.randn(count, 3, 32, 32)}


@pytest.mark.parametrize("training", [False, True])
def test_towers_of_fixed_resolution_attend_without_a_mask(training, monkeypatch):
    """With a mask, even one that hides nothing, flash attention's kernel is out."""
    calls = []
    attend = F.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        calls.append((attn_mask, dropout_p, is_causal))
        return attend(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model = SiglipExtModel(make_config()).train(training)
    assert {tower.config._attn_implementation for tower in (model.vision_model, model.text_model)} == {"sdpa"}
    model(**inputs())
    assert calls == [(None, 0.0, False)] * 5  # two layers a tower, and the MAP head


def test_the_loss_head_is_float32_under_autocast():
    model, batch = SiglipExtModel(make_config()).train(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        trained, scored = model(**batch), model(**batch, return_loss=False)
    assert trained.vision_model_output.pooler_output.dtype == torch.bfloat16
    assert trained.vision_model_output.last_hidden_state.dtype == torch.float32  # norms, and what they add up
    images, texts = trained.image_embeds.float(), trained.text_embeds.float()
    assert trained.loss.dtype == scored.logits_per_image.dtype == torch.float32
    assert torch.equal(scored.logits_per_image, model.logits(images, texts))
    torch.testing.assert_close(trained.loss, model.contrastive_loss(images, texts), rtol=1e-6, atol=0)
    trained.loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
