"""Which patches of an image are hidden from the student: an exact number, drawn from the sample's key.

They come as places and not as a mask, whose number of True a device would have to be asked for.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

from ..data.samples import key_number
from .views import key_of


HIDDEN = "hidden_patches"
"""Name in the batch: places of the hidden patches among all, counted row by row, int64 (B, hidden), in order."""


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


def draw_hidden(key: str, settings: MaskSettings) -> torch.Tensor:
    """Places of hidden patches, int64 (`settings.count`,), in order."""
    draw = random.Random(key_number(f"{key}/mask"))
    hidden = _blocks(draw, settings) if settings.blocks else list(range(settings.grid**2))
    return torch.tensor(sorted(draw.sample(hidden, settings.count)))


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

    inputs = (HIDDEN,)

    def __init__(self, settings: MaskSettings):
        self.settings = settings

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: for samples without a key.
        """
        return {HIDDEN: torch.stack([draw_hidden(key_of(example), self.settings) for example in examples])}
