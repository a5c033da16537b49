"""Which pairs of a block of images and texts belong together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Positives:
    """Positive pairs of a (images, texts) tile: those whose ids agree, or without ids one diagonal.

    Args:
        diagonal: Image i belongs to text i + diagonal, wherever that lies inside the tile.
        image_ids, text_ids: (images,) and (texts,), in place of the diagonal.
        weights: (images,), the share of each positive of an image in `row_sums` and `subtract_`; 1 where None.
    """

    diagonal: int
    image_ids: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    def part(self, rows: slice, columns: slice) -> Positives:
        """The positives of tile[rows, columns]."""
        if self.image_ids is None:
            return Positives(self.diagonal + rows.start - columns.start)
        weights = None if self.weights is None else self.weights[rows]
        return Positives(0, self.image_ids[rows], self.text_ids[columns], weights)

    def take_out_(self, tile: torch.Tensor) -> torch.Tensor:
        """The positives' logits (where there are no positives: infinity), leaving -infinity in their place.

        Negatives with a logit of -infinity have no loss and no gradient, and so do positives with one of infinity.
        """
        if self.image_ids is None:
            logits = tile.diagonal(self.diagonal).clone()
            tile.diagonal(self.diagonal).fill_(-torch.inf)
            return logits
        mask = self._mask()
        logits = torch.where(mask, tile, torch.inf)
        tile.masked_fill_(mask, -torch.inf)
        return logits

    def add_(self, tile: torch.Tensor, values: torch.Tensor) -> None:
        """Add to the tile what belongs to the logits that `take_out_` returned."""
        (tile.diagonal(self.diagonal) if self.image_ids is None else tile).add_(values)

    def row_sums(self, tile: torch.Tensor) -> torch.Tensor:
        """(images,), for each image the weighted sum over its positives in the tile."""
        if self.image_ids is None:
            entries = tile.diagonal(self.diagonal)
            before = max(0, -self.diagonal) if entries.numel() else 0
            return F.pad(entries, (before, tile.shape[0] - before - entries.shape[0]))
        return torch.where(self._mask(), tile, 0).sum(1) * self.weights

    def subtract_(self, tile: torch.Tensor, amount: float) -> None:
        if self.image_ids is None:
            tile.diagonal(self.diagonal).sub_(amount)
        else:
            tile.sub_(self._mask() * (amount * self.weights)[:, None])

    def _mask(self) -> torch.Tensor:
        return self.image_ids[:, None] == self.text_ids[None, :]
