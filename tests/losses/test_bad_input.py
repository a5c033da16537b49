"""Arguments that do not fit are refused early, from their shapes alone."""

import pytest
import torch

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss


GOOD = {
    "image_embeds": torch.ones(4, 3),
    "text_embeds": torch.ones(4, 3),
    "logit_scale": torch.zeros(1),
    "logit_bias": torch.zeros(()),
}


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": torch.ones(5, 3)}, r"text_embeds .*\(5, 3\)"),
        ({"text_embeds": torch.ones(4, 2)}, r"image_embeds \(4, 3\) and text_embeds \(4, 2\)"),
        ({"image_embeds": torch.ones(4), "text_embeds": torch.ones(4)}, r"\(B, D\)"),
        ({"image_embeds": torch.ones(0, 3), "text_embeds": torch.ones(0, 3)}, "empty"),
        ({"image_embeds": torch.ones(4, 0), "text_embeds": torch.ones(4, 0)}, "empty"),
        ({"text_embeds": torch.ones(4, 3).double()}, "float32 and torch.float64"),
        ({"image_embeds": torch.ones(4, 3).long(), "text_embeds": torch.ones(4, 3).long()}, "floating dtype"),
        ({"text_embeds": torch.ones(4, 3, device="meta")}, "text_embeds is on meta"),
        ({"logit_scale": torch.zeros(2)}, r"logit_scale .*\(2,\)"),
        ({"logit_scale": torch.zeros(1, dtype=torch.int64)}, "logit_scale .*int64"),
        ({"logit_bias": torch.zeros(1, 2)}, r"logit_bias .*\(1, 2\)"),
        ({"pair_ids": torch.arange(3)}, r"pair_ids .*\(4,\).*\(3,\)"),
        ({"pair_ids": torch.ones(4)}, "pair_ids .*float32"),
        ({"distribution": "rings"}, "distribution must be one of"),
        ({"implementation": "fused"}, "implementation must be one of"),
        ({"distribution": "ring", "implementation": "eager"}, "block by block"),
    ],
)
def test_refused(loss, change, message):
    with pytest.raises(ValueError, match=message):
        loss(**{**GOOD, **change})


def test_sigmoid_needs_a_bias():
    with pytest.raises(ValueError, match="logit_bias"):
        sigmoid_loss(**{**GOOD, "logit_bias": None})


def test_shapes_suffice():
    """No value is looked at: fake tensors, which have none, pass."""
    with torch._subclasses.FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in GOOD.items()}
        for implementation in ("eager", "tiled"):
            assert sigmoid_loss(**fake, implementation=implementation).shape == ()
            assert softmax_loss(**fake, implementation=implementation).shape == ()
