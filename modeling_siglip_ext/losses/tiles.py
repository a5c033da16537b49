"""Matrix products tile by tile, with memory for one tile: what the tiled sigmoid and softmax loss have in common."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch

from ..gpu import on_gpu


# Rows (images) and columns (texts) of a tile: 4 MiB of float32, and 128 MiB where launching a kernel takes longer.
CPU_TILE = 1024, 1024
ACCELERATOR_TILE = 4096, 8192
# Where a tile is read and written twice and no more, 512 MiB of bfloat16 (half the rows in float32): the larger it is,
# the seldomer the sums of gradients are read and written again.
TRITON_TILE = 16384, 16384
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Where Triton looks for one; images of containers that only run things often have none. Looked for here and not in a
# call, into which torch.compile would look, too.
HAS_C_COMPILER = "CC" in os.environ or any(map(shutil.which, ("clang", "gcc")))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels as Python, on any device: for tests
# Elements of a strip: 1 MiB of float32, which the second-level caches of two cores hold.
STRIP = 2**18


class TileProducts:
    """Tiles of scale * images @ texts.T, and the products that bring a tile's gradient back to images and texts.

    Logits, scale and accumulators are float32 or better; only the operands of a matrix product may be bfloat16, and
    only where the hardware multiplies bfloat16. Folding the scale into bfloat16 images would be faster still and put
    the gradient of the scale off by several percent.
    """

    def __init__(self, like: torch.Tensor, scale: torch.Tensor, kernels: bool = False) -> None:
        self.scale = scale
        self.operand_dtype = like.dtype if multiplies(like.dtype, like.device) else scale.dtype
        self.rows, self.columns = CPU_TILE if like.device.type == "cpu" else ACCELERATOR_TILE
        if kernels:
            self.rows, self.columns = max(1, TRITON_TILE[0] * 2 // self.operand_dtype.itemsize), TRITON_TILE[1]
        self._buffer = scale.new_empty(0, dtype=self.operand_dtype if kernels else scale.dtype)

    def tiles(self, images: int, texts: int) -> Iterator[tuple[slice, slice]]:
        for row in range(0, images, self.rows):
            for column in range(0, texts, self.columns):
                yield slice(row, min(row + self.rows, images)), slice(column, min(column + self.columns, texts))

    def logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """scale * images @ texts.T, in memory that the next call overwrites."""
        logits = self._tile(images, texts)
        images, texts = images.to(self.operand_dtype), texts.to(self.operand_dtype)
        if self.operand_dtype == self.scale.dtype:
            return torch.mm(images * self.scale, texts.mT, out=logits)
        return logits.copy_(images @ texts.mT).mul_(self.scale)

    def cosines(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """images @ texts.T in the dtype of the products, in memory that the next call overwrites."""
        images, texts = images.to(self.operand_dtype), texts.to(self.operand_dtype)
        return torch.mm(images, texts.mT, out=self._tile(images, texts))

    def _tile(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        shape = images.shape[0], texts.shape[0]
        if self._buffer.numel() < shape[0] * shape[1]:
            self._buffer = self._buffer.new_empty(shape[0] * shape[1])
        return self._buffer[: shape[0] * shape[1]].view(shape)

    def add_product_(self, total: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor) -> None:
        """total += gradient @ rows"""
        rows = rows.to(self.operand_dtype)
        if self.operand_dtype == self.scale.dtype:
            total.addmm_(gradient, rows)
        elif on_gpu(gradient):  # summed in float32 by the product itself
            torch.addmm(total, gradient.to(self.operand_dtype), rows, out_dtype=total.dtype, out=total)
        else:
            total.add_(gradient.to(self.operand_dtype) @ rows)


def strips(tile: torch.Tensor) -> Iterator[slice]:
    """A few rows at a time on a CPU, so that they stay in its cache from one elementwise operation to the next."""
    rows, columns = tile.shape
    step = max(4, STRIP // columns) if tile.device.type == "cpu" else rows
    return (slice(row, min(row + step, rows)) for row in range(0, rows, step))


def embedding_gradients(
    images: torch.Tensor,
    texts: torch.Tensor,
    image_sums: torch.Tensor | None,
    text_sums: Sequence[torch.Tensor],
    factor: torch.Tensor,
    logit_scale: torch.Tensor,
    needs: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of images, texts and logit_scale from the sums over tiles; empty ones where they are not needed.

    Args:
        image_sums: None where no gradient needs them.
        text_sums: one tensor, or none where no gradient needs it.
    """
    image_gradient, text_gradient, scale_gradient = (factor.new_empty(0) for _ in range(3))
    # of log(scale): <images, their gradient>, which is also <texts, their gradient>
    for text_sum in text_sums:
        text_gradient = text_sum.mul_(factor)
        if needs[2] and image_sums is None:
            scale_gradient = _inner_product(texts, text_gradient).view_as(logit_scale)
    if image_sums is not None:
        image_sums.mul_(factor)
        if needs[0]:
            image_gradient = image_sums
        if needs[2]:
            scale_gradient = _inner_product(images, image_sums).view_as(logit_scale)
    return image_gradient, text_gradient, scale_gradient


def _inner_product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """<one, other> without the memory for one * other."""
    if other.device.type == "xla":  # its compiler sees to that, and would unroll the loop
        return (one * other).sum()
    rows = 256 if other.device.type == "cpu" else 16384  # few launches where they cost more than the memory
    parts = list(zip(one.split(rows), other.split(rows)))
    totals = torch.zeros(len(parts), dtype=other.dtype, device=other.device)  # a list of them would scatter the heap
    for total, (a, b) in zip(totals, parts):
        total.copy_((a * b).sum())
    return totals.sum()


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of the dtype without loss of range, and faster than float32 ones."""
    if dtype in (torch.float32, torch.float64):
        return True
    if dtype != torch.bfloat16:  # float16 gradients of negatives would underflow
        return False
    if device.type != "cpu":
        return True
    # torch < 2.10 cannot tell; float32 is then slower on some machines and never wrong.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def triton_problem(embeds: torch.Tensor) -> str | None:
    """What the Triton kernels need that is not so for these embeddings; None if they can be had."""
    if not HAS_TRITON:
        return "the package triton, which is not installed here"
    if not (on_gpu(embeds) or INTERPRETED):
        return f"tensors on a GPU, got {embeds.device}"
    if not (INTERPRETED or HAS_C_COMPILER):
        return "a C compiler, with which it builds what launches a kernel: install gcc or clang, or set CC"
    return "float32, bfloat16 or float16 embeddings, got float64" if embeds.dtype == torch.float64 else None


def triton_tiles() -> ModuleType:
    """The module of kernels. Imported late, as triton is there for nobody but those who have a GPU."""
    return importlib.import_module(".triton_tiles", __package__)
