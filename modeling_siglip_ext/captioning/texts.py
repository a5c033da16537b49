"""What a captioning decoder reads and writes: the prefix of each task, and a box as four integers among the words.

LocCa (arXiv 2403.19596) writes `Cap:` caption, `ARef:` caption ` : ` box, `GCap:` box ` : ` caption, and boxes as
ordinary text of integers up to 500. What it leaves open is a setting here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the image's width and height counted from its top left."""

SIDES = ("left", "top", "right", "bottom")
SLACK = 1e-3  # detectors write 1.0000001


@dataclass(frozen=True)
class TextFormat:
    """How the texts of the three tasks are written. Prefixes pass through the text tower's tokenizer like any word.

    Args:
        caption: prefix of a caption of the whole image; empty for CapPa, which knows no other task.
        referring: prefix of a text and the box that it refers to.
        grounded: prefix of a box and the text that describes it.
        separator: between text and box.
        box_scale: the largest integer: places are rounded to 1/500 of the image.
        box_order: of the four sides. LocCa's is not published: the default is that of most data, so that nothing has
            to be turned.
        box_separator: between two integers. A space, because any tokenizer gives it back as it was.
        y_up: whether top and bottom are counted from the lower edge. Not by default: image files count downwards.

    Raises:
        ValueError: sides missing from `box_order`, or a scale below 1.
    """

    caption: str = "Cap:"
    referring: str = "ARef:"
    grounded: str = "GCap:"
    separator: str = " : "
    box_scale: int = 500
    box_order: tuple[str, ...] = SIDES
    box_separator: str = " "
    y_up: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_order", tuple(self.box_order))  # JSON has lists
        if sorted(self.box_order) != sorted(SIDES):
            raise ValueError(f"box_order must have each of {', '.join(SIDES)} once, got {list(self.box_order)}")
        if self.box_scale < 1:
            raise ValueError(f"box_scale must be at least 1, got {self.box_scale}")
        if not self.box_separator or any(character.isdigit() for character in self.box_separator):
            raise ValueError(f"box_separator must separate integers, got {self.box_separator!r}")

    def prefix(self, task: str) -> str:
        return {"caption": self.caption, "referring": self.referring, "grounded": self.grounded}[task]

    def write_box(self, box: Sequence[float]) -> str:
        """The text of a box; reading it gives each side back within half of 1 / `box_scale`.

        Raises:
            ValueError: see `checked_box`.
        """
        places = dict(zip(SIDES, self._turned(checked_box(box))))
        return self.box_separator.join(str(round(places[side] * self.box_scale)) for side in self.box_order)

    def read_box(self, text: str) -> Box | None:
        """The box that a text is; None for a text that is none."""
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if len(numbers) != len(SIDES) or max(numbers) > self.box_scale:
            return None
        places = dict(zip(self.box_order, numbers))
        left, top, right, bottom = self._turned([places[side] / self.box_scale for side in SIDES])
        return (left, top, right, bottom) if left <= right and top <= bottom else None

    def _turned(self, box: Sequence[float]) -> list[float]:
        left, top, right, bottom = box
        return [left, 1 - top, right, 1 - bottom] if self.y_up else [left, top, right, bottom]


def checked_box(box: Sequence[float]) -> Box:
    """A box whose sides lie within the image.

    Raises:
        ValueError: not four numbers, sides beyond the image (as pixels are) or in the wrong order.
    """
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box {box!r} is not left, top, right, bottom") from error
    if not all(-SLACK <= side <= 1 + SLACK for side in (left, top, right, bottom)):
        raise ValueError(f"box {list(box)} is not within 0 and 1: give shares of the image's width and height")
    if left > right or top > bottom:
        raise ValueError(f"box {list(box)} is not left, top, right, bottom with left <= right and top <= bottom")
    left, top, right, bottom = (min(1.0, max(0.0, side)) for side in (left, top, right, bottom))
    return left, top, right, bottom
