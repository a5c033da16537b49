"""Images to compare pixels of."""

import numpy as np
from PIL import Image


def noise(width: int = 30, height: int = 40, seed: int = 0) -> Image.Image:
    """An RGB image of which no two pixels, rows or columns are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
