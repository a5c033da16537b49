"""Value and gradients of the softmax loss, tile by tile: the operator behind `implementation="tiled"`.

Two passes over the tiles: the first finds the log-sum-exp of every row (an image against all texts) and column (a text
against all images), the second, knowing both, the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .autograd import register_gradients
from .checks import agree
from .distribution import LogSumExps, Sums, choose, communicator, gather_rows, sweep
from .positives import Diagonal, SameIds
from .tiles import TileProducts, accumulator_dtype, embedding_gradients, strips, triton_tiles


@torch.library.custom_op("siglip_ext::softmax_loss", mutates_args=())
def tiled_softmax_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    pair_ids: torch.Tensor | None,
    needs: Sequence[bool],
    group: str,
    distribution: str,
    kernels: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's loss and its gradients with respect to images, texts and logit_scale.

    Args:
        images, texts: (B_local, D).
        needs: Which of the three gradients to compute; the others come back empty.
        group: Name of the communicator.
        kernels: Triton kernels for each tile in place of PyTorch's operations.
    """
    needs_images, needs_texts, needs_scale = needs
    fused = triton_tiles() if kernels else None
    comm = communicator(group)
    sizes = agree(comm, "softmax", images, pair_ids, needs_texts, distribution)
    distribution = choose(distribution, sizes, images.shape[1])
    first_image, share = sum(sizes[: comm.rank]), comm.world_size / (2 * sum(sizes))

    scale = logit_scale.to(accumulator_dtype(images.dtype)).exp().view(())
    products = TileProducts(images, scale, kernels)
    block = [texts] if pair_ids is None else [texts, pair_ids]
    weights = None
    if pair_ids is not None:  # the positives of a row share its target
        weights = 1 / _occurrences(pair_ids, gather_rows(comm, pair_ids, sizes)).to(scale.dtype)

    image_lse = LogSumExps(scale).new(images.shape[0])
    targets = torch.zeros_like(image_lse)

    def find_lse(first_text: int, block: list[torch.Tensor], text_lses: list[torch.Tensor]) -> None:
        texts, text_lse = block[0], text_lses[0]
        positives = Diagonal(first_image - first_text) if pair_ids is None else SameIds(pair_ids, block[1], weights)
        for rows, columns in products.tiles(images.shape[0], texts.shape[0]):
            part = positives.part(rows, columns)
            if fused is not None:
                tile = products.cosines(images[rows], texts[columns])
                row_lse, column_lse, sums = fused.log_sum_exps(tile, part, scale)
            else:
                tile = products.logits(images[rows], texts[columns])
                sums = part.row_sums(tile)
                row_lse, column_lse = _log_sum_exps_(tile)
            targets[rows] += sums
            image_lse[rows] = torch.logaddexp(image_lse[rows], row_lse)
            text_lse[columns] = torch.logaddexp(text_lse[columns], column_lse)

    # d log(scale) is <images, d images> and also <texts, d texts>: without kernels one of the two is needed for it.
    images_for_scale = needs_scale and not needs_texts and not kernels
    image_sums = scale.new_zeros(images.shape) if needs_images or images_for_scale else None
    scale_sums = torch.zeros_like(image_lse)

    def find_gradients(first_text: int, block: list[torch.Tensor], text_sums: list[torch.Tensor]) -> None:
        texts, text_lse = block[:2]
        positives = Diagonal(first_image - first_text) if pair_ids is None else SameIds(pair_ids, block[2], weights)
        for rows, columns in products.tiles(images.shape[0], texts.shape[0]):
            part = positives.part(rows, columns)
            if fused is not None:
                tile = products.cosines(images[rows], texts[columns])
                fused.softmax_pass_(tile, part, scale, image_lse[rows], text_lse[columns], scale_sums[rows])
            else:
                tile = products.logits(images[rows], texts[columns])
                for strip in strips(tile):
                    _add_softmaxes_(tile[strip], image_lse[rows][strip], text_lse[columns])
                part.subtract_(tile, 2)  # one target a row and one a column
            if image_sums is not None:
                products.add_product_(image_sums[rows], tile, texts[columns])
            for text_sum in text_sums:
                products.add_product_(text_sum[columns], tile.mT, images[rows])

    with torch.autocast(images.device.type, enabled=False):
        (text_lse,) = sweep(comm, distribution, sizes, block, [LogSumExps(scale)], find_lse)
        text_sums = []
        if any(needs):
            accumulators = [Sums(scale, images.shape[1])] if needs_texts else []
            block = [texts, text_lse, *block[1:]]
            text_sums = sweep(comm, distribution, sizes, block, accumulators, find_gradients)

    images_gradient, texts_gradient, scale_gradient = embedding_gradients(
        images, texts, image_sums, text_sums, scale * share, logit_scale, [*needs[:2], needs_scale and not kernels]
    )
    if kernels and needs_scale:
        scale_gradient = (scale_sums.sum() * scale * share).view_as(logit_scale)
    loss = (image_lse + text_lse - 2 * targets).sum() * share  # by rows, where the terms nearly cancel
    return loss, images_gradient, texts_gradient, scale_gradient


register_gradients(tiled_softmax_loss, arguments=3)


def _log_sum_exps_(tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of each row and of each column. Overwrites the tile."""
    if not _exp_is_finite(tile):
        return tile.logsumexp(1), tile.logsumexp(0)
    row_sums, column_sums = tile.new_empty(tile.shape[0]), tile.new_zeros(tile.shape[1])
    for strip in strips(tile):
        exp = tile[strip].exp_()
        torch.sum(exp, 1, out=row_sums[strip])
        column_sums += exp.sum(0)
    return row_sums.log(), column_sums.log()


def _add_softmaxes_(z: torch.Tensor, row_lse: torch.Tensor, column_lse: torch.Tensor) -> None:
    """z becomes exp(z - row_lse) + exp(z - column_lse)."""
    if _exp_is_finite(z):
        z.exp_().mul_((-row_lse).exp()[:, None] + (-column_lse).exp())
    else:
        by_rows = (z - row_lse[:, None]).exp_()
        z.sub_(column_lse).exp_().add_(by_rows)


def _exp_is_finite(z: torch.Tensor) -> bool:
    """Whether one exp serves rows and columns, as it neither over- nor underflows. Not asked where one must wait."""
    if z.device.type != "cpu":
        return False
    least, greatest = z.aminmax()
    return bool(least > -60 and greatest < 60)


def _occurrences(ids: torch.Tensor, all_ids: torch.Tensor) -> torch.Tensor:
    """How often each id is among all ids. Sorted, because the shape of torch.unique would have to be waited for."""
    ordered = all_ids.sort().values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
