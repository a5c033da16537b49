"""The evaluation loss: over blocks of fixed size, so that it depends on no batch size and no number of processes."""

from collections.abc import Callable

import numpy as np
import torch


def blockwise_loss(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    loss: Callable[..., torch.Tensor],
    size: int,
    pair_ids: np.ndarray | None = None,
) -> dict[str, float]:
    """Mean loss over blocks of `size` pairs in their order, on the CPU in float64.

    Args:
        image_embeds, text_embeds: (N, D), normalised.
        loss: as `modeling_siglip_ext.sigmoid_loss`.
        pair_ids: (N,), where several rows can belong together.

    Returns:
        `loss`, and `loss_pairs`, the number of pairs it covers: a last partial block is left out unless it is the
        only one.
    """
    scale, bias = (p if p is None else p.detach().cpu().double() for p in (logit_scale, logit_bias))
    images, texts = torch.from_numpy(image_embeds).double(), torch.from_numpy(text_embeds).double()
    ids = None if pair_ids is None else torch.from_numpy(pair_ids)
    size = min(size, len(images))
    blocks = [slice(i, i + size) for i in range(0, len(images) - size + 1, size)]
    losses = [
        loss(
            images[block],
            texts[block],
            scale,
            bias,
            pair_ids=None if ids is None else ids[block],
            distribution="none",
        ).item()
        for block in blocks
    ]
    return {"loss": sum(losses) / len(losses), "loss_pairs": len(losses) * size}
