"""Images to compare pixels of."""

from os import PathLike

import numpy as np
from PIL import Image


def noise(width: int = 30, height: int = 40, seed: int = 0) -> Image.Image:
    """An RGB image of which no two pixels, rows or columns are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def read_image(path: str | PathLike) -> Image.Image:
    """What a file shows; the file is closed."""
    with Image.open(path) as image:
        image.load()
        return image


def colour(number: int) -> Image.Image:
    """A square of a colour of its own."""
    return Image.new("RGB", (16, 16), (number * 3 % 256, number * 7 % 256, number * 11 % 256))
