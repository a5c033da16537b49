"""A sheet of images with what was found in them: a caption below each, and boxes with the phrases they are of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from modeling_siglip_ext.images import load_image

from .style import ACCENT, BASE_FONT, INK, MUTED, RIGHT, bare, caption_fonts, cut, save


@dataclass(frozen=True)
class DrawnBox:
    """A box on an image.

    Args:
        sides: left, top, right, bottom in pixels of the upright image, as `locate` gives them.
        text: beside it.
        right: drawn as the truth, dashed and green, and not as what was found.
    """

    sides: tuple[float, float, float, float]
    text: str = ""
    right: bool = False


def box_sheet(
    path: str | Path,
    images: Sequence[Any],
    captions: Sequence[str],
    boxes: Sequence[Sequence[DrawnBox]],
    *,
    columns: int = 4,
    title: str = "Captions and boxes",
) -> Path:
    """Draw images in rows, each with its boxes and the caption below.

    Args:
        path: PNG file to write.
        images: paths, URLs, PIL images, bytes or arrays.
        captions: one an image, perhaps empty.
        boxes: those of each image, perhaps none.
        columns: images in a row.
        title: heading.

    Returns:
        `path`.

    Raises:
        ValueError: no images, other numbers of captions or boxes, or an image that cannot be read.
    """
    if not images or len(captions) != len(images) or len(boxes) != len(images):
        raise ValueError(f"{len(images)} images need as many captions and boxes, got {len(captions)} and {len(boxes)}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side, head, foot = 2.6, 0.7, 0.45  # inches
    width, height = columns * side + 0.4, head + rows * (side + foot)
    fonts = caption_fonts([*captions, *(box.text for own in boxes for box in own)])
    figure = Canvas(figsize=(width, height))
    figure.text(
        0.2 / width, 1 - 0.35 / height, title, fontsize=14, fontweight="bold", fontfamily=[BASE_FONT], color=INK
    )
    for number, (image, words, own) in enumerate(zip(images, captions, boxes)):
        row, column = divmod(number, columns)
        bottom = height - head - row * (side + foot) - side
        place = ((0.2 + column * side + 0.1) / width, bottom / height, (side - 0.2) / width, (side - 0.1) / height)
        axes = figure.add_axes(place)
        bare(axes)
        axes.imshow(np.asarray(load_image(image)), interpolation="nearest")
        axes.set_xlabel(cut(words, 40), fontsize=8, fontfamily=fonts, color=INK if words else MUTED)
        for box in own:
            left, top, right, lower = box.sides
            colour, line = (RIGHT, "--") if box.right else (ACCENT, "-")
            # pixel centres are whole numbers, so the image's edge is at -0.5
            corner = left - 0.5, top - 0.5
            axes.add_patch(Rectangle(corner, right - left, lower - top, fill=False, ec=colour, ls=line, lw=1.6))
            if box.text:
                label: dict[str, Any] = {"boxstyle": "square,pad=0.15", "facecolor": colour, "linewidth": 0}
                axes.text(
                    *corner, cut(box.text, 30), va="bottom", fontsize=7, color="white", fontfamily=fonts, bbox=label
                )
    return save(figure, path)
