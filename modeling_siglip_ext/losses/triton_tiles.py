"""Elementwise work on a tile of logits as one Triton kernel a pass, in place of some ten PyTorch operations.

On a GPU the matrix products of a tile take less time than reading and writing it ten times. A kernel here reads the
cosines once, in the products' dtype, and leaves the gradient of the logits in their place; everything in between is
float32. Nothing is added by atomics, so that the same input gives the same bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..gpu import launching_on
from .positives import Diagonal, SameIds


# Columns that a program reads at once where it goes along a row, 16 bytes of bfloat16 for each of its threads. A tile
# must have less than 127 times as many: a product of more factors up to 2 might not be finite. Chosen on an H100.
COLUMNS = 1024
WARPS = 4
# The block of the pass that needs sums along rows and along columns.
BLOCK = 64, 128
LOG_2 = tl.constexpr(math.log(2))
LOG2_E = tl.constexpr(1 / math.log(2))


def sigmoid_pass_(
    tile: torch.Tensor,
    positives: Diagonal | SameIds,
    scale: torch.Tensor,
    bias: torch.Tensor,
    losses: torch.Tensor,
    bias_sums: torch.Tensor,
    scale_sums: torch.Tensor,
    derivative: bool,
) -> None:
    """Add each row's losses to `losses`; with `derivative` the tile becomes the gradient of the logits.

    The gradient's sums go to `bias_sums`, those of its product with the cosines to `scale_sums`: from here, because
    the gradient is about to be rounded.

    Args:
        tile: (images, texts), cosines in bfloat16 or float32.
        scale, bias: scalars in float32.
        losses, bias_sums, scale_sums: (images,) in float32.
    """
    rows, columns = tile.shape
    offset, row_ids, column_ids = _labels(tile, positives)
    with launching_on(tile):
        _sigmoid_kernel[(rows,)](
            tile, tile.stride(0), columns, offset, row_ids, column_ids, scale, bias, losses, bias_sums, scale_sums,
            SAME_IDS=isinstance(positives, SameIds), EVEN=columns % COLUMNS == 0, DERIVATIVE=derivative,
            COLUMNS=COLUMNS, num_warps=WARPS,
        )  # fmt: skip


def log_sum_exps(
    tile: torch.Tensor, positives: Diagonal | SameIds, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the logits of a tile of cosines: log-sum-exp of each row, of each column, each row's sum over its positives.

    Returns:
        (images,), (texts,) and (images,) in float32; the sums are weighted as `positives.row_sums` weights them.
    """
    rows, columns = tile.shape
    row_blocks, column_blocks = triton.cdiv(rows, BLOCK[0]), triton.cdiv(columns, BLOCK[1])
    by_row, targets = scale.new_empty(2, column_blocks, rows)
    by_column = scale.new_empty(row_blocks, columns)
    offset, row_ids, column_ids = _labels(tile, positives)
    with launching_on(tile):
        _log_sum_exp_kernel[(column_blocks, row_blocks)](
            tile, tile.stride(0), rows, columns, offset, row_ids, column_ids, scale, by_row, by_column, targets,
            SAME_IDS=isinstance(positives, SameIds), ROWS=BLOCK[0], COLUMNS=BLOCK[1],
        )  # fmt: skip
    sums = targets.sum(0)
    weights = _weights(positives)
    return by_row.logsumexp(0), by_column.logsumexp(0), sums if weights is None else sums * weights


def softmax_pass_(
    tile: torch.Tensor,
    positives: Diagonal | SameIds,
    scale: torch.Tensor,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
    scale_sums: torch.Tensor,
) -> None:
    """A tile of cosines becomes the gradient of the logits: both softmaxes, less two for each row's positives.

    Args:
        row_lse, column_lse: (images,) and (texts,) in float32, over all texts and all images.
        scale_sums: (images,) in float32, to which the sums of gradient times cosine are added.
    """
    rows, columns = tile.shape
    offset, row_ids, column_ids = _labels(tile, positives)
    weights = _weights(positives)
    with launching_on(tile):
        _softmax_kernel[(rows,)](
            tile, tile.stride(0), columns, offset, row_ids, column_ids, scale, row_lse, column_lse,
            row_lse if weights is None else weights, scale_sums, SAME_IDS=isinstance(positives, SameIds),
            EVEN=columns % COLUMNS == 0, WEIGHTED=weights is not None, COLUMNS=COLUMNS, num_warps=WARPS,
        )  # fmt: skip


def _labels(tile: torch.Tensor, positives: Diagonal | SameIds) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The diagonal's offset, ids of rows and of columns; what the kernel does not look at is anything of the kind."""
    if isinstance(positives, Diagonal):
        return positives.offset, tile, tile
    return 0, positives.image_ids, positives.text_ids


def _weights(positives: Diagonal | SameIds) -> torch.Tensor | None:
    return positives.weights if isinstance(positives, SameIds) else None


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, with the digits of a small x: far from the decision boundary a loss is hardly more."""
    series = x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6))))))
    return tl.where(x < 1 / 32, series, tl.log(1 + x))


@triton.jit(do_not_specialize=["offset"])
def _sigmoid_kernel(
    tile, stride, columns, offset, row_ids, column_ids, scale, bias, losses, bias_sums, scale_sums,
    SAME_IDS: tl.constexpr, EVEN: tl.constexpr, DERIVATIVE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A row a program. With z the logit of a negative, or minus that of a positive, a loss is log(1 + exp(z)).

    That is max(z, 0) + log(1 + exp(-|z|)), and a thread takes one logarithm of all the factors 1 + exp(-|z|) it meets:
    `product` is their product less one, which grows without cancellation. z is in units of log 2, as exp2 wants it.
    """
    row = tl.program_id(0)
    tile += row.to(tl.int64) * stride
    factor, summand = tl.load(scale) * LOG2_E, tl.load(bias) * LOG2_E
    row_id = tl.load(row_ids + row) if SAME_IDS else 0
    above = tl.zeros([COLUMNS], tl.float32)
    product = tl.zeros([COLUMNS], tl.float32)
    by_bias = tl.zeros([COLUMNS], tl.float32)
    by_scale = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < columns
        cosine = _load(tile + column, inside, EVEN).to(tl.float32)
        if SAME_IDS:
            positive = _load(column_ids + column, inside, EVEN) == row_id
        else:
            positive = column == row + offset
        sign = tl.where(positive, -1.0, 1.0)
        z = sign * (cosine * factor + summand)
        if not EVEN:
            z = tl.where(inside, z, float("-inf"))
        small = tl.exp2(-tl.abs(z))
        more = 1 + small
        above += tl.maximum(z, 0)
        product = product * more + small
        if DERIVATIVE:
            gradient = sign * tl.where(z > 0, 1.0, small) / more
            by_bias += gradient
            by_scale += gradient * cosine
            _store(tile + column, gradient, inside, EVEN)
    tl.store(losses + row, tl.load(losses + row) + tl.sum(above * LOG_2 + _log1p(product)))
    if DERIVATIVE:
        tl.store(bias_sums + row, tl.load(bias_sums + row) + tl.sum(by_bias))
        tl.store(scale_sums + row, tl.load(scale_sums + row) + tl.sum(by_scale))


@triton.jit
def _load(cells, inside, EVEN: tl.constexpr):
    return tl.load(cells) if EVEN else tl.load(cells, mask=inside, other=0)


@triton.jit
def _store(cells, values, inside, EVEN: tl.constexpr):
    if EVEN:
        tl.store(cells, values.to(cells.dtype.element_ty))
    else:
        tl.store(cells, values.to(cells.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["offset"])
def _log_sum_exp_kernel(
    tile, stride, rows, columns, offset, row_ids, column_ids, scale, by_row, by_column, targets,
    SAME_IDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block a program. One exp serves rows and columns where the block's logits are so near that none underflows."""
    row_block, column_block = tl.program_id(1), tl.program_id(0)
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = row < rows, column < columns
    inside = row_inside[:, None] & column_inside[None, :]
    cells = tile + row.to(tl.int64)[:, None] * stride + column[None, :]
    z = tl.load(cells, mask=inside, other=0).to(tl.float32) * (tl.load(scale) * LOG2_E)
    if SAME_IDS:
        row_id = tl.load(row_ids + row, mask=row_inside, other=0)
        positive = row_id[:, None] == tl.load(column_ids + column, mask=column_inside, other=0)[None, :]
        target = tl.sum(tl.where(positive & inside, z, 0), 1)
    else:
        target = tl.sum(tl.where((column[None, :] == row[:, None] + offset) & column_inside[None, :], z, 0), 1)
    most, least = tl.max(z), tl.min(z)  # those outside count as 0, which does no harm
    z = tl.where(inside, z, float("-inf"))
    if most - least < 100:
        exp = tl.exp2(z - most)
        row_lse = most + tl.log2(tl.sum(exp, 1))
        column_lse = most + tl.log2(tl.sum(exp, 0))
    else:
        row_max = tl.where(row_inside, tl.max(z, 1), 0)
        row_lse = row_max + tl.log2(tl.sum(tl.exp2(z - row_max[:, None]), 1))
        column_max = tl.where(column_inside, tl.max(z, 0), 0)
        column_lse = column_max + tl.log2(tl.sum(tl.exp2(z - column_max[None, :]), 0))
    tl.store(by_row + column_block * rows + row, row_lse * LOG_2, mask=row_inside)
    tl.store(targets + column_block * rows + row, target * LOG_2, mask=row_inside)
    tl.store(by_column + row_block.to(tl.int64) * columns + column, column_lse * LOG_2, mask=column_inside)


@triton.jit(do_not_specialize=["offset"])
def _softmax_kernel(
    tile, stride, columns, offset, row_ids, column_ids, scale, row_lse, column_lse, weights, scale_sums,
    SAME_IDS: tl.constexpr, EVEN: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A row a program."""
    row = tl.program_id(0)
    tile += row.to(tl.int64) * stride
    factor, own_lse = tl.load(scale) * LOG2_E, tl.load(row_lse + row) * LOG2_E
    row_id = tl.load(row_ids + row) if SAME_IDS else 0
    amount = 2.0 * tl.load(weights + row) if WEIGHTED else 2.0
    by_scale = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < columns
        cosine = _load(tile + column, inside, EVEN).to(tl.float32)
        if SAME_IDS:
            positive = _load(column_ids + column, inside, EVEN) == row_id
        else:
            positive = column == row + offset
        z = cosine * factor
        other_lse = _load(column_lse + column, inside, EVEN) * LOG2_E
        gradient = tl.exp2(z - own_lse) + tl.exp2(z - other_lse) - tl.where(positive, amount, 0)
        by_scale += tl.where(inside, gradient * cosine, 0)
        _store(tile + column, gradient, inside, EVEN)
    tl.store(scale_sums + row, tl.load(scale_sums + row) + tl.sum(by_scale))
