"""What a scene shows, in words that follow from its boxes."""

import re
from collections.abc import Sequence


RELATIONS = ("left of", "above", "below")


def in_order(boxes: Sequence[Sequence[int]]) -> list[int]:
    """The order in which a caption names boxes of left, top, width and height: by their centers, from left to right,
    and from top to bottom where these are equal."""
    return sorted(range(len(boxes)), key=lambda place: _center(boxes[place]))


def caption(names: Sequence[str], boxes: Sequence[Sequence[int]]) -> str:
    """Names in order, each with how it stands to the next: "tulip left of taxi above owl".

    Along the axis on which their centers are further apart; as far on both is left of.
    """
    words = [names[0]]
    for one, other, name in zip(boxes, boxes[1:], names[1:]):
        words += [_relation(_center(one), _center(other)), name]
    return " ".join(words)


def _relation(one: tuple[int, int], other: tuple[int, int]) -> str:
    right, down = other[0] - one[0], other[1] - one[1]
    if right >= abs(down):
        return "left of"
    return "above" if down > 0 else "below"


def _center(box: Sequence[int]) -> tuple[int, int]:
    """Twice the center, in whole numbers."""
    return 2 * box[0] + box[2], 2 * box[1] + box[3]


def names_in(text: str) -> list[str]:
    """The names of a caption, in order: what `caption` was given."""
    return re.split("|".join(f" {relation} " for relation in RELATIONS), text)
