"""Emoji cut out of their white ground, at any size."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


_WHITE = 232
_OPAQUE = 128
_MOST_KEPT = 8192


def cut_out(pictures: Sequence[bytes]) -> list[Image.Image]:
    """Each emoji as RGBA, cropped.

    Transparent is what is nearly white (232 and above in every channel) and connected to the border.

    Args:
        pictures: encoded images of one size, RGB on white.
    """
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in pictures])
    ground = connected_to_border(np.all(pixels >= _WHITE, axis=-1))
    alpha = np.where(ground, 0, 255).astype(np.uint8)
    return [_cropped(*one) for one in zip(pixels, alpha)]


def connected_to_border(mask: np.ndarray) -> np.ndarray:
    """Of bool masks (N, H, W) what a path of neighbours, four a pixel, joins to the border."""
    reached = mask.copy()
    reached[:, 1:-1, 1:-1] = False
    while True:
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= mask
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def _cropped(pixels: np.ndarray, alpha: np.ndarray) -> Image.Image:
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Image.fromarray(np.dstack([pixels[box], alpha[box]]))


def sides(longest: np.ndarray, height: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and width of cut-outs whose longer side is scaled to `longest`; whole numbers, rounded."""
    most = np.maximum(height, width)
    tall, wide = ((2 * longest * side + most) // (2 * most) for side in (height, width))
    return np.maximum(tall, 1), np.maximum(wide, 1)


class Sprites:
    """Cut-outs at the sizes that were asked for, kept.

    Args:
        images: RGBA.
    """

    def __init__(self, images: Sequence[Image.Image]):
        self._images = images
        self.heights = np.array([image.height for image in images])
        self.widths = np.array([image.width for image in images])
        self._kept: dict[tuple[int, int, int], tuple[Image.Image, Image.Image]] = {}

    def scaled(self, number: int, height: int, width: int) -> tuple[Image.Image, Image.Image]:
        """One of them as RGBA, and the mask of what is rather opaque than not, as L of 0 and 255."""
        key = number, height, width
        if key in self._kept:
            return self._kept[key]
        image = self._images[number]
        smaller = height <= image.height
        scaled = image.resize((width, height), Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = scaled, scaled.getchannel("A").point([255 * (value >= _OPAQUE) for value in range(256)])
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._images)
