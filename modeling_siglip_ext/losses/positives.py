"""Which pairs of a block of images and texts belong together: those on a diagonal, or those of the same id.

Both know these operations on a (images, texts) tile of logits:

- `part(rows, columns)`: the positives of tile[rows, columns].
- `take_out_(tile)`: the positives' logits (where there are no positives: infinity), leaving -infinity in their place.
  Negatives with a logit of -infinity have no loss and no gradient, and so do positives with one of infinity.
- `add_(tile, values)`: add to the tile what belongs to the logits that `take_out_` returned.
- `row_sums(tile)`: (images,), for each image the weighted sum over its positives in the tile.
- `subtract_(tile, amount)`: take the weighted amount off the positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Diagonal:
    """Image i belongs to text i + offset, wherever that lies inside the tile; all weights are 1."""

    offset: int

    def part(self, rows: slice, columns: slice) -> Diagonal:
        return Diagonal(self.offset + rows.start - columns.start)

    def take_out_(self, tile: torch.Tensor) -> torch.Tensor:
        logits = tile.diagonal(self.offset).clone()
        tile.diagonal(self.offset).fill_(-torch.inf)
        return logits

    def add_(self, tile: torch.Tensor, values: torch.Tensor) -> None:
        tile.diagonal(self.offset).add_(values)

    def row_sums(self, tile: torch.Tensor) -> torch.Tensor:
        entries = tile.diagonal(self.offset)
        before = max(0, -self.offset) if entries.numel() else 0
        return F.pad(entries, (before, tile.shape[0] - before - entries.shape[0]))

    def subtract_(self, tile: torch.Tensor, amount: float) -> None:
        tile.diagonal(self.offset).sub_(amount)


@dataclass(frozen=True)
class SameIds:
    """An image and a text belong together where their ids agree.

    Args:
        image_ids, text_ids: (images,) and (texts,).
        weights: (images,), the share of each positive of an image; 1 where None.
    """

    image_ids: torch.Tensor
    text_ids: torch.Tensor
    weights: torch.Tensor | None = None

    def part(self, rows: slice, columns: slice) -> SameIds:
        weights = None if self.weights is None else self.weights[rows]
        return SameIds(self.image_ids[rows], self.text_ids[columns], weights)

    def take_out_(self, tile: torch.Tensor) -> torch.Tensor:
        mask = self._mask()
        logits = torch.where(mask, tile, torch.inf)
        tile.masked_fill_(mask, -torch.inf)
        return logits

    def add_(self, tile: torch.Tensor, values: torch.Tensor) -> None:
        tile.add_(values)

    def row_sums(self, tile: torch.Tensor) -> torch.Tensor:
        sums = torch.where(self._mask(), tile, 0).sum(1)
        return sums if self.weights is None else sums * self.weights

    def subtract_(self, tile: torch.Tensor, amount: float) -> None:
        amounts = amount if self.weights is None else (amount * self.weights)[:, None]
        tile.sub_(self._mask() * amounts)

    def _mask(self) -> torch.Tensor:
        return self.image_ids[:, None] == self.text_ids[None, :]
