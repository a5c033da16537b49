"""The step of ScalingViT-Adafactor on a CPU as loops compiled by numba.

Written as tensor operations a step passes ten times over each matrix, and takes nearly three times as long as torch's
fused AdamW; here it passes twice. numba compiles the loops at their first call, which takes some seconds.

All tensors are contiguous ones on the CPU, in float32 but for the moment, which is bfloat16.
"""

from collections.abc import Generator
from contextlib import contextmanager

import numba
import numpy as np
import torch


# Rows that one thread takes at a time. Fixed, so that sums do not depend on the number of threads.
ROWS = 256


def square_sums(grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the squares of a (rows, columns) matrix along its rows, (rows, 1), and its columns, (1, columns)."""
    rows, columns = grad.shape
    by_row = torch.empty(rows, 1)
    by_column = torch.empty(-(-rows // ROWS), columns)
    with _torchs_threads():
        _square_sums(grad.numpy(), by_row.numpy(), by_column.numpy())
    return by_row, by_column.sum(0, keepdim=True)


def descend_factored(
    weight: torch.Tensor,
    grad: torch.Tensor,
    moment: torch.Tensor,
    by_row: torch.Tensor,
    by_column: torch.Tensor,
    momentum: float,
    lr: float,
    weight_decay: float,
    row_first: bool,
) -> None:
    """moment ← momentum × moment + grad × by_row × by_column; weight ← (1 − lr × weight_decay) weight − lr × moment.

    The decayed moment is rounded to bfloat16, and the new one where it is kept; the weight takes it unrounded.

    Args:
        weight, grad: (rows, columns); the weight is overwritten.
        moment: (rows, columns), overwritten.
        by_row, by_column: (rows, 1) and (1, columns).
        momentum: a number that bfloat16 can hold.
        row_first: whether the gradient is multiplied by `by_row` first, which decides on last bits.
    """
    arrays = (tensor.numpy() for tensor in (weight.detach(), grad, moment.view(torch.uint16)))
    factors = by_row.view(-1).numpy(), by_column.view(-1).numpy()
    with _torchs_threads():
        _descend_factored(*arrays, *factors, *map(np.float32, (momentum, 1 - lr * weight_decay, lr)), row_first)


def descend_whole(
    weight: torch.Tensor,
    grad: torch.Tensor,
    moment: torch.Tensor,
    square: torch.Tensor,
    beta2: float,
    eps: float,
    momentum: float,
    grad_factor: float,
    lr: float,
    weight_decay: float,
) -> None:
    """square ← beta2 × square + (1 − beta2) (grad² + eps), then as `descend_factored` with grad_factor / √square.

    Args:
        weight, grad, square: of one shape; weight and square are overwritten.
        moment: of that shape, overwritten.
        momentum: a number that bfloat16 can hold.
    """
    arrays = (tensor.view(-1).numpy() for tensor in (weight.detach(), grad, moment.view(torch.uint16), square))
    scalars = (beta2, 1 - beta2, eps, momentum, grad_factor, 1 - lr * weight_decay, lr)
    with _torchs_threads():
        _descend_whole(*arrays, *map(np.float32, scalars))


@contextmanager
def _torchs_threads() -> Generator[None]:
    """With as many threads as torch has, and torch with as many afterwards: both share OpenMP, whose number numba sets
    to that of all cores when it starts its own. Under torchrun every process would then take the whole machine.
    """
    threads = torch.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS  # ty: ignore[missing-attribute]  # numba sets it while it is imported
    numba.set_num_threads(min(threads, most))
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


# numba makes 64 bits of sums and shifts of 32, hence the casts.
@numba.njit
def _float32(bits: np.uint16) -> np.float32:
    """A bfloat16 number from its bits."""
    return np.uint32(np.uint32(bits) << 16).view(np.float32)


@numba.njit
def _bfloat16(value: np.float32) -> np.uint16:
    """The bits of the nearest bfloat16 number, of two the even one."""
    if np.isnan(value):  # would be rounded up to an infinity, or beyond it to zero
        return np.uint16(0x7FC0)
    bits = np.float32(value).view(np.uint32)
    return np.uint16(np.uint32(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


# The order of additions is left to the compiler, for several at a time.
@numba.njit(fastmath={"reassoc", "contract"})
def _add_squares(values: np.ndarray, sums: np.ndarray) -> np.float32:
    """Add squares to `sums`, one by one; their total."""
    total = np.float32(0)
    for i in range(values.shape[0]):
        square = values[i] * values[i]
        sums[i] += square
        total += square
    return total


@numba.njit(parallel=True)
def _square_sums(grad: np.ndarray, by_row: np.ndarray, by_column: np.ndarray) -> None:
    """`by_column` has a row of sums for every `ROWS` rows."""
    for part in numba.prange(by_column.shape[0]):
        by_column[part] = 0
        for row in range(part * ROWS, min((part + 1) * ROWS, grad.shape[0])):
            by_row[row] = _add_squares(grad[row], by_column[part])


@numba.njit(parallel=True)
def _descend_factored(
    weight: np.ndarray,
    grad: np.ndarray,
    moment: np.ndarray,
    by_row: np.ndarray,
    by_column: np.ndarray,
    momentum: np.float32,
    kept: np.float32,
    lr: np.float32,
    row_first: bool,
) -> None:
    for row in numba.prange(weight.shape[0]):
        for i in range(weight.shape[1]):
            if row_first:
                scaled = grad[row, i] * by_row[row] * by_column[i]
            else:
                scaled = grad[row, i] * by_column[i] * by_row[row]
            update = _float32(_bfloat16(momentum * _float32(moment[row, i]))) + scaled
            moment[row, i] = _bfloat16(update)
            weight[row, i] = kept * weight[row, i] - lr * update


@numba.njit(parallel=True)
def _descend_whole(
    weight: np.ndarray,
    grad: np.ndarray,
    moment: np.ndarray,
    square: np.ndarray,
    beta2: np.float32,
    one_less_beta2: np.float32,
    eps: np.float32,
    momentum: np.float32,
    grad_factor: np.float32,
    kept: np.float32,
    lr: np.float32,
) -> None:
    for i in numba.prange(weight.shape[0]):
        square[i] = beta2 * square[i] + one_less_beta2 * (grad[i] * grad[i] + eps)
        scaled = grad_factor * (grad[i] / np.sqrt(square[i]))
        update = _float32(_bfloat16(momentum * _float32(moment[i]))) + scaled
        moment[i] = _bfloat16(update)
        weight[i] = kept * weight[i] - lr * update
