"""The sigmoid loss of SigLIP and the softmax loss of CLIP, written as in the papers.

This file depends on nothing but torch: it is the reference for the faster implementations, and it is the copy of the
losses that travels with a saved model. It keeps several B x B matrices; `tiled` is for large batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    *,
    pair_ids: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    distribution: str = "auto",
    implementation: str = "auto",
) -> torch.Tensor:
    """`modeling_siglip_ext.losses.sigmoid_loss` without tiles, ring and uneven batches; see there."""
    first, gather = _global_batch(image_embeds, group, distribution)
    # Divided by the local batch, not the global one: the mean over ranks is then the loss of the global batch.
    share = 1 / image_embeds.shape[0]
    return sigmoid_sum(image_embeds, text_embeds, logit_scale, logit_bias, pair_ids, first, gather, share)


def softmax_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    pair_ids: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    distribution: str = "auto",
    implementation: str = "auto",
) -> torch.Tensor:
    """`modeling_siglip_ext.losses.softmax_loss` without tiles, ring and uneven batches; see there."""
    first, gather = _global_batch(image_embeds, group, distribution)
    loss = softmax_sum(image_embeds, text_embeds, logit_scale, pair_ids, first, gather) / image_embeds.shape[0]
    # The bias cancels in the softmax. A gradient of zero keeps DDP from missing the parameter.
    return loss if logit_bias is None else loss + 0 * logit_bias.sum()


def sigmoid_sum(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    pair_ids: torch.Tensor | None,
    first: int,
    gather: Callable[[torch.Tensor], torch.Tensor],
    share: float,
) -> torch.Tensor:
    """Loss of our images with everybody's texts, summed over the pairs, times the share.

    Args:
        first: Place of our first row among those of all ranks.
        gather: Takes our rows to those of all ranks.
    """
    logits = affine_cosines(images, gather(texts), logit_scale, logit_bias)
    labels = _labels(logits, pair_ids, first, gather, negative=-1)
    return F.logsigmoid(labels * logits).sum() * -share


def softmax_sum(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    pair_ids: torch.Tensor | None,
    first: int,
    gather: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Cross-entropies of our images over everybody's texts and of our texts over everybody's images, halved."""
    no_bias = torch.zeros_like(logit_scale)
    by_image = affine_cosines(images, gather(texts), logit_scale, no_bias)
    by_text = affine_cosines(texts, gather(images), logit_scale, no_bias)
    targets = F.normalize(_labels(by_image, pair_ids, first, gather, negative=0), p=1, dim=1)
    image_to_text = F.cross_entropy(by_image, targets, reduction="sum")
    text_to_image = F.cross_entropy(by_text, targets, reduction="sum")
    return (image_to_text + text_to_image) / 2


def affine_cosines(
    rows: torch.Tensor, columns: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    """exp(logit_scale) * <row, column> + logit_bias in float32 or better: near -10 bfloat16 numbers are 0.06 apart."""
    if torch.is_autocast_enabled(rows.device.type):
        with torch.autocast(rows.device.type, enabled=False):
            return affine_cosines(rows, columns, logit_scale, logit_bias)
    if rows.dtype in (torch.bfloat16, torch.float16):
        rows, columns = rows.float(), columns.float()
    scale, bias = logit_scale.to(rows.dtype).exp(), logit_bias.to(rows.dtype)
    return torch.addcmul(bias, rows @ columns.mT, scale)


def _labels(
    logits: torch.Tensor,
    pair_ids: torch.Tensor | None,
    first: int,
    gather: Callable[[torch.Tensor], torch.Tensor],
    negative: float,
) -> torch.Tensor:
    """1 where a row and a column belong together, `negative` elsewhere; without ids each row has its own column."""
    labels = torch.full_like(logits, negative)
    if pair_ids is not None:
        return labels.masked_fill_(pair_ids[:, None] == gather(pair_ids), 1)
    labels.diagonal(first).fill_(1)
    return labels


def _global_batch(
    embeds: torch.Tensor, group: dist.ProcessGroup | None, distribution: str
) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """The place of our first row among those of all ranks, and how to gather the rows of all ranks."""
    if distribution not in ("auto", "none", "gather"):
        raise ValueError(f"distribution must be 'auto', 'none' or 'gather' here, got {distribution!r}")
    if distribution == "none" or not (dist.is_available() and dist.is_initialized()):
        return 0, lambda rows: rows
    return dist.get_rank(group) * embeds.shape[0], lambda rows: _AllGather.apply(rows, group)


# ---- collectives


def all_gather(rows: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """(n, ...) on every rank -> (ranks * n, ...) in rank order."""
    gathered = rows.new_empty(rows.shape[0] * dist.get_world_size(group), *rows.shape[1:])
    collective = dist.all_gather_single if _NEW_NAMES else dist.all_gather_into_tensor
    collective(gathered, rows.contiguous(), group=group)
    return gathered


def reduce_scatter(rows: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """(ranks * n, ...) on every rank -> (n, ...), the sum over ranks of our part."""
    own = rows.new_empty(rows.shape[0] // dist.get_world_size(group), *rows.shape[1:])
    collective = dist.reduce_scatter_single if _NEW_NAMES else dist.reduce_scatter_tensor
    collective(own, rows.contiguous(), group=group)
    return own


_NEW_NAMES = hasattr(dist, "reduce_scatter_single")  # torch 2.13 warns of the older names


class _AllGather(torch.autograd.Function):
    """What the losses of other ranks say about our rows comes back in the gradient.

    `torch.distributed` collectives are not differentiable, and the usual "put the own rows back" drops that part.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.group = group
        return all_gather(rows, group)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        return reduce_scatter(grads[0], ctx.group), None
