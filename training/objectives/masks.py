"""Which patches of an image are hidden from the student: an exact number, drawn from the sample's key."""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from ..data.samples import key_number
from .views import key_of


MASK = "patch_mask"
"""Name in the batch: bool (B, N), True for hidden patches, row by row."""


@dataclass(frozen=True)
class MaskSettings:
    """Half of the patches (SigLIP 2, arXiv 2502.14786), each for itself.

    Args:
        grid: rows, and columns, of patches.
        ratio: share of hidden patches.
        blocks: hide rectangles, as BEiT and iBOT do, down to the same exact number.

    Raises:
        ValueError: for a share that hides no patch.
    """

    grid: int
    ratio: float = 0.5
    blocks: bool = False

    def __post_init__(self):
        if not 0 < self.ratio <= 1 or self.count < 1:
            raise ValueError(f"ratio must hide a patch of {self.grid}×{self.grid} and at most all, got {self.ratio}")

    @classmethod
    def for_tower(cls, config: Any, **changes: Any) -> "MaskSettings":
        """Those of a vision tower's configuration."""
        return cls(**{"grid": config.image_size // config.patch_size, **changes})

    @property
    def count(self) -> int:
        return round(self.ratio * self.grid**2)


def draw_mask(key: str, settings: MaskSettings) -> torch.Tensor:
    """bool (N,), with exactly `settings.count` True."""
    draw, mask = random.Random(key_number(f"{key}/mask")), torch.zeros(settings.grid**2, dtype=torch.bool)
    hidden = _blocks(draw, settings) if settings.blocks else list(range(len(mask)))
    mask[draw.sample(hidden, settings.count)] = True
    return mask


def _blocks(draw: random.Random, settings: MaskSettings) -> list[int]:
    """The patches under random rectangles, of 16 patches or more and aspects of 0.3 to 3.3 where these fit."""
    grid, hidden = settings.grid, set()
    while len(hidden) < settings.count:
        left = settings.count - len(hidden)
        area = draw.uniform(min(16, left), left)
        ratio = math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
        height = min(grid, max(1, round(math.sqrt(area * ratio))))
        width = min(grid, max(1, round(math.sqrt(area / ratio))))
        top, start = draw.randint(0, grid - height), draw.randint(0, grid - width)
        hidden |= {row * grid + column for row in range(top, top + height) for column in range(start, start + width)}
    return sorted(hidden)


class PatchMasks:
    """The masks of the samples of a batch, for `ExtendedCollator`."""

    inputs = (MASK,)

    def __init__(self, settings: MaskSettings):
        self.settings = settings

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: for samples without a key.
        """
        return {MASK: torch.stack([draw_mask(key_of(example), self.settings) for example in examples])}
