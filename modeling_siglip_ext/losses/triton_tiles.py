"""Elementwise work on a tile of logits as one Triton kernel a pass, in place of some ten PyTorch operations.

On a GPU the matrix products of a tile take less time than reading and writing it ten times. A kernel here reads the
cosines once, in the products' dtype, and leaves the gradient of the logits in their place; everything in between is
float32. Nothing is added by atomics, so that the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .positives import Diagonal, SameIds


# Columns that a program reads at once, for the passes that go along a row: 16 bytes of bfloat16 for each of 256 threads.
COLUMNS = 2048
WARPS = 8
# The block of the pass that needs sums along rows and along columns.
BLOCK = 64, 128


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
    _sigmoid_kernel[(rows,)](
        tile, tile.stride(0), columns, offset, row_ids, column_ids, scale, bias, losses, bias_sums, scale_sums,
        SAME_IDS=isinstance(positives, SameIds), DERIVATIVE=derivative, COLUMNS=COLUMNS, num_warps=WARPS,
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
    _softmax_kernel[(rows,)](
        tile, tile.stride(0), columns, offset, row_ids, column_ids, scale, row_lse, column_lse,
        row_lse if weights is None else weights, scale_sums, SAME_IDS=isinstance(positives, SameIds),
        WEIGHTED=weights is not None, COLUMNS=COLUMNS, num_warps=WARPS,
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
    """log(1 + x) for 0 <= x <= 1, with the digits of a small x: far from the decision boundary a loss is hardly more."""
    series = x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6))))))
    return tl.where(x < 1 / 32, series, tl.log(1 + x))


@triton.jit(do_not_specialize=["offset"])
def _sigmoid_kernel(
    tile, stride, columns, offset, row_ids, column_ids, scale, bias, losses, bias_sums, scale_sums,
    SAME_IDS: tl.constexpr, DERIVATIVE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    tile += row.to(tl.int64) * stride
    scale, bias = tl.load(scale), tl.load(bias)
    row_id = tl.load(row_ids + row) if SAME_IDS else 0
    loss = tl.zeros([COLUMNS], tl.float32)
    by_bias = tl.zeros([COLUMNS], tl.float32)
    by_scale = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < columns
        cosine = tl.load(tile + column, mask=inside, other=0).to(tl.float32)
        if SAME_IDS:
            positive = tl.load(column_ids + column, mask=inside, other=0) == row_id
        else:
            positive = column == row + offset
        sign = tl.where(positive, -1.0, 1.0)
        wrong = sign * (cosine * scale + bias)  # how far the pair lies on the wrong side
        small = tl.exp(-tl.abs(wrong))
        loss += tl.where(inside, tl.maximum(wrong, 0) + _log1p(small), 0)
        if DERIVATIVE:
            gradient = sign * tl.where(wrong > 0, 1.0, small) / (1 + small)
            by_bias += tl.where(inside, gradient, 0)
            by_scale += tl.where(inside, gradient * cosine, 0)
            tl.store(tile + column, gradient.to(tile.dtype.element_ty), mask=inside)
    tl.store(losses + row, tl.load(losses + row) + tl.sum(loss))
    if DERIVATIVE:
        tl.store(bias_sums + row, tl.load(bias_sums + row) + tl.sum(by_bias))
        tl.store(scale_sums + row, tl.load(scale_sums + row) + tl.sum(by_scale))


@triton.jit(do_not_specialize=["offset"])
def _log_sum_exp_kernel(
    tile, stride, rows, columns, offset, row_ids, column_ids, scale, by_row, by_column, targets,
    SAME_IDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tl.program_id(1), tl.program_id(0)
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = row < rows, column < columns
    inside = row_inside[:, None] & column_inside[None, :]
    cells = tile + row.to(tl.int64)[:, None] * stride + column[None, :]
    logits = tl.load(cells, mask=inside, other=0).to(tl.float32) * tl.load(scale)
    if SAME_IDS:
        row_id = tl.load(row_ids + row, mask=row_inside, other=0)
        positive = row_id[:, None] == tl.load(column_ids + column, mask=column_inside, other=0)[None, :]
    else:
        positive = column[None, :] == row[:, None] + offset
    target = tl.sum(tl.where(positive & inside, logits, 0), 1)
    logits = tl.where(inside, logits, float("-inf"))
    row_max = tl.where(row_inside, tl.max(logits, 1), 0)
    row_sum = tl.sum(tl.exp(logits - row_max[:, None]), 1)
    column_max = tl.where(column_inside, tl.max(logits, 0), 0)
    column_sum = tl.sum(tl.exp(logits - column_max[None, :]), 0)
    tl.store(by_row + column_block * rows + row, row_max + tl.log(row_sum), mask=row_inside)
    tl.store(targets + column_block * rows + row, target, mask=row_inside)
    tl.store(by_column + row_block.to(tl.int64) * columns + column, column_max + tl.log(column_sum), mask=column_inside)


@triton.jit(do_not_specialize=["offset"])
def _softmax_kernel(
    tile, stride, columns, offset, row_ids, column_ids, scale, row_lse, column_lse, weights, scale_sums,
    SAME_IDS: tl.constexpr, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    tile += row.to(tl.int64) * stride
    scale, own_lse = tl.load(scale), tl.load(row_lse + row)
    row_id = tl.load(row_ids + row) if SAME_IDS else 0
    amount = 2.0 * tl.load(weights + row) if WEIGHTED else 2.0
    by_scale = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < columns
        cosine = tl.load(tile + column, mask=inside, other=0).to(tl.float32)
        logit = cosine * scale
        if SAME_IDS:
            positive = tl.load(column_ids + column, mask=inside, other=0) == row_id
        else:
            positive = column == row + offset
        other_lse = tl.load(column_lse + column, mask=inside, other=0)
        gradient = tl.exp(logit - own_lse) + tl.exp(logit - other_lse) - tl.where(positive, amount, 0)
        by_scale += tl.where(inside, gradient * cosine, 0)
        tl.store(tile + column, gradient.to(tile.dtype.element_ty), mask=inside)
    tl.store(scale_sums + row, tl.load(scale_sums + row) + tl.sum(by_scale))
