"""What scenes look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


BACKGROUNDS = ("plain", "gradient", "stripes", "blocks")
MOST_OBJECTS = 4


@dataclass(frozen=True)
class SceneSettings:
    """
    Args:
        names: how many names there are to learn, spread over the classes (`classes.CLASSES`).
        variants: at most so many pictures a name: skin tones, and men and women in a role.
        objects: fewest and most emoji of a scene; one to four.
        size: pixels of the canvas, one number or height and width.
        emoji_size: smallest and largest longer side of an emoji, in pixels.
        backgrounds: of "plain", "gradient", "stripes" and "blocks".
        count: scenes of the training split.
        held_out: scenes of the validation split, and of the test split.
        seed: of every draw. Other settings alike, equal seeds give equal scenes, on any machine.

    Raises:
        ValueError: a setting of the wrong kind or out of range, or emoji that do not fit the canvas.
    """

    names: int = 26
    variants: int = 8
    objects: tuple[int, int] = (1, 3)
    size: int | tuple[int, int] = 72
    emoji_size: tuple[int, int] = (24, 45)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    count: int = 8192
    held_out: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("names", "variants", "count", "held_out"):
            _check_number(name, getattr(self, name), 1)
        _check_number("seed", self.seed, 0)
        object.__setattr__(self, "objects", _pair("objects", self.objects))
        object.__setattr__(self, "emoji_size", _pair("emoji_size", self.emoji_size))
        for name, (low, high) in (("objects", self.objects), ("emoji_size", self.emoji_size)):
            if low > high:
                raise ValueError(f"{name} must be the lowest and the highest, got {[low, high]}")
        if self.objects[1] > min(MOST_OBJECTS, self.names):
            raise ValueError(f"objects must be at most {MOST_OBJECTS}, and at most names, got {list(self.objects)}")
        if isinstance(self.size, Sequence) and not isinstance(self.size, str):
            object.__setattr__(self, "size", _pair("size", self.size))
        else:
            _check_number("size", self.size, 1)
        given = (self.backgrounds,) if isinstance(self.backgrounds, str) else tuple(self.backgrounds)
        unknown = [kind for kind in given if kind not in BACKGROUNDS]
        if unknown or not given:
            raise ValueError(f"backgrounds must be some of {', '.join(BACKGROUNDS)}, got {list(given)}")
        object.__setattr__(self, "backgrounds", given)
        height, width = self.canvas
        low, high = self.emoji_size
        if high > min(height, width):
            raise ValueError(
                f"emoji_size: emoji of {high} pixels do not fit a canvas of {height} x {width}; lower it or raise size"
            )
        if (height // low) * (width // low) < self.objects[1]:
            raise ValueError(
                f"emoji_size: {self.objects[1]} emoji of {low} pixels do not fit side by side on a canvas of "
                f"{height} x {width}; lower it or objects, or raise size"
            )

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def _check_number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} must be two whole numbers, got {value!r}")
    for one in value:
        _check_number(name, one, 1)
    return value[0], value[1]
