"""Value and gradients of the sigmoid loss, tile by tile: the operator behind `implementation="tiled"`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .autograd import register_gradients
from .checks import agree
from .distribution import Sums, choose, communicator, sweep
from .positives import Diagonal, SameIds
from .tiles import TileProducts, accumulator_dtype, embedding_gradients, strips, triton_tiles


FACTORS = 16  # negatives that share a logarithm


@torch.library.custom_op("siglip_ext::sigmoid_loss", mutates_args=())
def tiled_sigmoid_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    pair_ids: torch.Tensor | None,
    needs: Sequence[bool],
    group: str,
    distribution: str,
    kernels: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's loss and its gradients with respect to images, texts, logit_scale and logit_bias.

    Args:
        images, texts: (B_local, D).
        needs: Which of the four gradients to compute; the others come back empty.
        group: Name of the communicator.
        kernels: One Triton kernel for each tile in place of PyTorch's operations.
    """
    needs_images, needs_texts, needs_scale, needs_bias = needs
    fused = triton_tiles() if kernels else None
    comm = communicator(group)
    sizes = agree(comm, "sigmoid", images, pair_ids, needs_texts, distribution)
    first_image, share = sum(sizes[: comm.rank]), comm.world_size / sum(sizes)

    dtype = accumulator_dtype(images.dtype)
    scale, bias = logit_scale.to(dtype).exp().view(()), logit_bias.to(dtype).view(())
    products = TileProducts(images, scale, kernels)
    # d log(scale) is <images, d images> and also <texts, d texts>: without kernels one of the two is needed for it.
    images_for_scale = needs_scale and not needs_texts and not kernels
    image_sums = scale.new_zeros(images.shape) if needs_images or images_for_scale else None
    # Totals are kept by rows: a single float32 for millions of strips would lose digits, and a list of small tensors
    # would keep the allocator from reusing the memory between them.
    losses, bias_sums, scale_sums = scale.new_zeros(3, images.shape[0])

    def visit(first_text: int, block: list[torch.Tensor], text_sums: list[torch.Tensor]) -> None:
        texts = block[0]
        positives = Diagonal(first_image - first_text) if pair_ids is None else SameIds(pair_ids, block[1])
        for rows, columns in products.tiles(images.shape[0], texts.shape[0]):
            part, sums = positives.part(rows, columns), (losses[rows], bias_sums[rows], scale_sums[rows])
            if fused is not None:
                tile = products.cosines(images[rows], texts[columns])
                fused.sigmoid_pass_(tile, part, scale, bias, *sums, derivative=any(needs))
            else:
                tile = products.logits(images[rows], texts[columns])
                _sigmoid_passes_(tile, part, bias, sums[0], sums[1] if needs_bias else None, derivative=any(needs))
            if image_sums is not None:
                products.add_product_(image_sums[rows], tile, texts[columns])
            for text_sum in text_sums:
                products.add_product_(text_sum[columns], tile.mT, images[rows])

    block = [texts] if pair_ids is None else [texts, pair_ids]
    accumulators = [Sums(scale, images.shape[1])] if needs_texts else []
    with torch.autocast(images.device.type, enabled=False):
        text_sums = sweep(comm, choose(distribution, sizes, images.shape[1]), sizes, block, accumulators, visit)

    images_gradient, texts_gradient, scale_gradient = embedding_gradients(
        images, texts, image_sums, text_sums, scale * share, logit_scale, [*needs[:2], needs_scale and not kernels]
    )
    if kernels and needs_scale:
        scale_gradient = (scale_sums.sum() * scale * share).view_as(logit_scale)
    bias_gradient = bias_sums.sum() * share if needs_bias else scale.new_empty(0)
    return (
        losses.sum() * share,
        images_gradient,
        texts_gradient,
        scale_gradient,
        bias_gradient.view(logit_bias.shape if needs_bias else 0),
    )


register_gradients(tiled_sigmoid_loss, arguments=4)


def _sigmoid_passes_(
    tile: torch.Tensor,
    positives: Diagonal | SameIds,
    bias: torch.Tensor,
    losses: torch.Tensor,
    bias_sums: torch.Tensor | None,
    derivative: bool,
) -> None:
    """Add a tile's losses to `losses`; with `derivative` the tile becomes its gradient.

    Its sums are added to `bias_sums`, which is None where no gradient needs them.
    """
    positive = positives.take_out_(tile) + bias
    losses[0].add_(_softplus(-positive).sum())
    for strip in strips(tile):
        losses[strip.start].add_(softplus_sum_(tile[strip].add_(bias), derivative))
        if bias_sums is not None:
            bias_sums[strip.start].add_(tile[strip].sum())
    if derivative:
        positive_gradient = torch.sigmoid(-positive).neg_()
        positives.add_(tile, positive_gradient)
        if bias_sums is not None:
            bias_sums[0].add_(positive_gradient.sum())


def _softplus(z: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(z)), the loss of a negative pair with logit z, and of a positive one with -z."""
    # beyond its default threshold of 20 torch returns z, which float64 would notice
    return F.softplus(z, threshold=40)


def softplus_sum_(z: torch.Tensor, derivative: bool) -> torch.Tensor:
    """Sum of softplus(z); z becomes its derivative, sigmoid(z), if that is wanted."""
    if z.device.type != "cpu" or z.numel() % FACTORS:
        total = _softplus(z).sum()
        if derivative:
            z.sigmoid_()
        return total
    # On a CPU a logarithm costs more than all the rest, so take one for a product of FACTORS factors: with p the
    # sigmoid, softplus(z) = -log(1 - p), and 1 - (1 - p) (1 - q) = p + (1 - p) q, which `lerp` computes without
    # cancellation.
    sigmoid, one = z.sigmoid(), z.new_ones(())
    p = sigmoid.view(FACTORS, -1)
    while len(p) > 1:
        half = len(p) // 2
        p = torch.lerp(p[:half], one, p[half:])
    # 1 - p has lost digits where p is near 1: those few take the long way
    near_one = p > 0.5
    total = _softplus(z.view(FACTORS, -1)[:, near_one[0]]).sum()
    total -= p.masked_fill_(near_one, 0).neg_().log1p_().sum()
    if derivative:
        z.copy_(sigmoid)
    return total
