"""Position embeddings: the fixed sine-cosine table, and resizing a learned table to other grids."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from transformers.utils.import_utils import is_tracing

from .packing import on_device


def sincos2d(grid_size: int, width: int, temperature: float = 10_000.0) -> torch.Tensor:
    """The fixed table of big_vision's ViT (`posemb_sincos_2d`), shape (grid_size², width), float32.

    Example:

    ```python
    >>> from modeling_siglip_ext.positions import sincos2d
    >>> sincos2d(14, 768).shape
    torch.Size([196, 768])

    ```"""
    y, x = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    omega = torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1)
    omega = 1.0 / temperature**omega
    y, x = y.flatten().double()[:, None] * omega, x.flatten().double()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def interpolate_positions(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A square table (n², D) at another grid, (height·width, D): bicubic, as the stock `interpolate_pos_encoding`."""
    side = math.isqrt(table.shape[0])
    grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(height * width, -1)


def antialiased_weights(target: torch.Tensor, position: torch.Tensor, source: int) -> torch.Tensor:
    """Rows of the bilinear resize matrix from `source` to `target` samples, antialiased, half-pixel centres.

    Args:
        target: Sizes to resize to, any shape, integer.
        position: Index of the wanted output sample, same shape.
        source: Size of the table to read from.

    Returns:
        Weights over the source samples, shape (*target.shape, source), each row summing to 1, float32.
    """
    # not `source / target`: torch computes that as a reciprocal times source, which is off in the last digit
    scale = torch.full_like(target, source, dtype=torch.float32) / target
    support = scale.clamp(min=1.0)  # the triangle widens when shrinking: that is the antialiasing
    centre = (position.to(torch.float32) + 0.5) * scale
    samples = torch.arange(source, device=target.device, dtype=torch.float32) + 0.5
    weights = (1 - ((samples - centre[..., None]) / support[..., None]).abs()).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True)


@lru_cache(maxsize=4096)  # a few kB each; sizes recur in every batch
def resize_matrix(source: int, target: int) -> torch.Tensor:
    """The matrix (target, source) that resizes one axis of a table, on the CPU."""
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later training step
        return antialiased_weights(torch.tensor(target), torch.arange(target), source)


def resize_shorter_side(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A grid (n, n, D) with the shorter side of the target resized: (height, n·D), or (n, width·D) of a tall one."""
    side = grid.shape[0]
    if height <= width:
        return resize_matrix(side, height).to(grid.dtype) @ grid.flatten(1)
    return torch.bmm(resize_matrix(side, width).to(grid.dtype).expand(side, -1, -1), grid).flatten(1)


def resize_longer_side(
    half: torch.Tensor, side: int, height: int, width: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The rest of the way from `resize_shorter_side` to (height·width, D)."""
    if height <= width:
        columns = resize_matrix(side, width).to(half.dtype).expand(height, -1, -1)
        out = None if out is None else out.view(height, width, -1)
        return torch.bmm(columns, half.view(height, side, -1), out=out).view(height * width, -1)
    out = None if out is None else out.view(height, -1)
    return torch.mm(resize_matrix(side, height).to(half.dtype), half, out=out).view(height * width, -1)


@torch.autocast("cpu", enabled=False)  # it would round positions, and does not know of products with an `out`
def resize_grids_one_by_one(table: torch.Tensor, sizes: list[tuple[int, int]], padding: list[int]) -> torch.Tensor:
    """Positions of grids of these sizes, one after another: two small products for each size, cheapest on a CPU.

    Args:
        table: Learned positions, (n², D).
        sizes: Height and width of each grid.
        padding: How often the first position is repeated after those of each grid.

    Returns:
        (sum of height · width + padding, D) in the table's dtype.
    """
    side = math.isqrt(table.shape[0])
    dtype = torch.promote_types(table.dtype, torch.float32)
    grid = table.to(dtype).view(side, side, -1)
    halves = {}  # many grids share their shorter side
    for height, width in sizes:
        if (min(height, width), height <= width) not in halves:
            halves[min(height, width), height <= width] = resize_shorter_side(grid, height, width)
    resized: dict[tuple[int, int], torch.Tensor] = {}

    def resize(height: int, width: int, out: torch.Tensor | None = None) -> torch.Tensor:
        half = halves[min(height, width), height <= width]
        return resize_longer_side(half, side, height, width, out)

    if torch.is_grad_enabled() and table.requires_grad:
        resized = {size: resize(*size) for size in dict.fromkeys(sizes)}
        pieces = []
        for size, repeats in zip(sizes, padding):
            pieces += [resized[size], resized[size][:1].expand(repeats, -1)] if repeats else [resized[size]]
        return torch.cat(pieces).to(table.dtype)
    # Without autograd the products can be written to their place. Most of the time goes into touching new memory;
    # numpy asks for huge pages, which halves it.
    lengths = [height * width + repeats for (height, width), repeats in zip(sizes, padding)]
    result = torch.from_numpy(np.empty((sum(lengths), grid.shape[-1]), str(dtype).removeprefix("torch.")))
    for image, (height, width) in zip(result.split(lengths), sizes):
        place = image[: height * width]
        if (height, width) in resized:
            place.copy_(resized[height, width])
        else:
            resized[height, width] = resize(height, width, out=place)
        image[height * width :] = image[0]
    return result.to(table.dtype)


def unrounded(device: torch.device) -> AbstractContextManager:
    """Around products that autocast would round; entered only there, as an exported program has no place for it."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def gather_positions(
    table: torch.Tensor, height: torch.Tensor, width: torch.Tensor, token: torch.Tensor
) -> torch.Tensor:
    """Positions (..., D) of tokens, each the `token`-th of a grid of its height and width; three arrays of one shape.

    One matrix product, without a shape that depends on data: bilinear resizing is separable, and a token's position is
    a sum over the table, weighted by (row) x (column).
    """
    side = math.isqrt(table.shape[0])
    dtype = torch.promote_types(table.dtype, torch.float32)
    rows = antialiased_weights(height, token // width, side)
    columns = antialiased_weights(width, token % width, side)
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(-2)
    with unrounded(table.device):
        return (weights.to(dtype) @ table.to(dtype)).to(table.dtype)


def resize_grids_together(table: torch.Tensor, spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
    """`resize_positions` without a host synchronisation."""
    height, width = on_device(spatial_shapes, table.device)[:, :, None].unbind(dim=1)
    token = torch.arange(length, device=table.device)[None]
    token = torch.where(token < height * width, token, 0)
    return gather_positions(table, height.expand_as(token), width.expand_as(token), token)


def resize_positions(table: torch.Tensor, spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
    """A learned position grid resized to every image's own grid (SigLIP 2 NaFlex).

    Equal to `interpolate(..., mode="bilinear", antialias=True)` image by image.

    Args:
        table: Learned positions, (n², D).
        spatial_shapes: Rows and columns of patches of each image, (B, 2), integer.
        length: Padded number of patches L.

    Returns:
        (B, L, D) in the table's dtype. Padded tokens get the first patch's position, as in the stock class.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.positions import resize_positions
    >>> resize_positions(torch.randn(256, 32), torch.tensor([[16, 16], [8, 32]]), length=256).shape
    torch.Size([2, 256, 32])

    ```"""
    if table.device.type == "cpu" and spatial_shapes.device.type == "cpu" and not is_tracing(spatial_shapes):
        sizes = [(height, width) for height, width in spatial_shapes.tolist()]
        padding = [length - height * width for height, width in sizes]
        return resize_grids_one_by_one(table, sizes, padding).view(len(sizes), length, -1)
    return resize_grids_together(table, spatial_shapes, length)


def resize_positions_in_a_row(table: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
    """As `resize_positions`, for grids of these heights and widths one after another: (sum of height · width, D)."""
    if table.device.type == "cpu":
        return resize_grids_one_by_one(table, sizes, padding=[0] * len(sizes))
    tokens = [torch.arange(height * width) for height, width in sizes]
    lengths = torch.tensor([len(token) for token in tokens])
    grids = torch.tensor(sizes).repeat_interleave(lengths, dim=0)
    of_tokens = on_device(torch.cat([grids, torch.cat(tokens)[:, None]], dim=1), table.device)  # in one transfer
    return gather_positions(table, *of_tokens.unbind(dim=1))


def resample_positions(table: torch.Tensor, grid_size: int) -> torch.Tensor:
    """A square table (n², D) for another resolution, (grid_size², D), as big_vision resamples when it loads.

    That is scipy's `zoom` of order 1 (`models/vit.py`, `resample_posemb`): bilinear with aligned corners.
    """
    side = math.isqrt(table.shape[0])
    grid = table.to(torch.float32).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(grid_size, grid_size), mode="bilinear", align_corners=True)
    return grid.permute(0, 2, 3, 1).reshape(grid_size**2, -1).to(table.dtype)
