"""Scenes of emoji with captions, boxes and labels of every pixel, drawn when they are asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
from PIL import Image

from .backgrounds import DRAWS, background
from .captions import caption, in_order
from .classes import CLASSES, Name, choose_names
from .draws import Draws
from .layout import lay_out
from .settings import SceneSettings
from .sprites import Sprites, cut_out


HELD_OUT_SCENES = ("validation", "test")
SPLITS = ("train", *HELD_OUT_SCENES)
CLASS_NAMES = ("background", *CLASSES)
_CHUNK = 256


@dataclass(frozen=True)
class Placed:
    """An emoji in a scene.

    Args:
        text: its name.
        label: number of its class.
        sprite: number of its cut-out.
        box: left, top, width, height in pixels.
    """

    text: str
    label: int
    sprite: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A scene before it is drawn.

    Args:
        ground: kind of the background.
        ground_draws: the numbers it follows from.
        objects: in the order of the caption.
        painted: their places, from back to front.
    """

    ground: str
    ground_draws: np.ndarray
    objects: tuple[Placed, ...]
    painted: tuple[int, ...]


class Scenes(Sequence[dict[str, Any]]):
    """The scenes of a split by index; each follows from (seed, split, index) alone.

    An item has `image` (PIL, RGB), `caption`, and `regions`: for each emoji `box` (left, top, right, bottom in shares
    of width and height), `text` and `score` 1.0, as captioning learns them. Nothing is kept but cut-outs.

    Args:
        settings: what scenes look like; those of the prototype unless given.
        split: "train"; "validation", other scenes of the same emoji; or "test", scenes of held-out emoji, which are
            new skin tones and genders of hands and people whose names are in training.

    Raises:
        ValueError: unknown split; more names than there are, or more objects than names with held-out emoji.
    """

    class_names = CLASS_NAMES
    """Of the numbers in `labels`."""

    def __init__(self, settings: SceneSettings | None = None, split: str = "train"):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        self.settings, self.split = settings or SceneSettings(), split
        wanted = self.settings.names, self.settings.variants
        named, self._sprites, self._sprites_of = _cut_outs(*wanted, split == "test")
        self.names = tuple(name.text for name in named)
        """Those that the scenes of this split show."""
        self._labels = tuple(name.label for name in named)
        if self.settings.objects[1] > len(self.names):
            raise ValueError(
                f"objects: up to {self.settings.objects[1]} emoji of different names, but only {len(self.names)} of "
                f"{self.settings.names} names have held-out ones; raise names, or lower objects"
            )
        self._draws = Draws(f"{self.settings.seed}/{split}")

    def __len__(self) -> int:
        return self.settings.count if self.split == "train" else self.settings.held_out

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return list(self.rows(range(*index.indices(len(self)))))
        return next(self.rows([self._checked(index)]))

    def labels(self, index: int) -> np.ndarray:
        """The class of every pixel, uint8 (H, W), numbered as in `class_names`; where an emoji is less than half
        opaque it is background."""
        height, width = self.settings.canvas
        canvas = Image.new("L", (width, height), 0)
        scene = next(self.plans([self._checked(index)]))
        for place in scene.painted:
            one = scene.objects[place]
            canvas.paste(one.label, one.box[:2], self._scaled(one)[1])
        return np.asarray(canvas)

    def rows(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Items, faster than one by one."""
        for scene in self.plans(indices):
            yield {"image": self._draw(scene), **self.text_of(scene)}

    def text_of(self, scene: Scene) -> dict[str, Any]:
        """`caption` and `regions`."""
        height, width = self.settings.canvas
        texts, boxes = [one.text for one in scene.objects], [one.box for one in scene.objects]
        shares = ((x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in boxes)
        regions = [{"box": list(box), "text": text, "score": 1.0} for box, text in zip(shares, texts)]
        return {"caption": caption(texts, boxes), "regions": regions}

    def plans(self, indices: Iterable[int]) -> Iterator[Scene]:
        """Scenes before they are drawn."""
        indices = np.fromiter(indices, dtype=np.int64)
        for first in range(0, len(indices), _CHUNK):
            yield from self._plans(indices[first : first + _CHUNK])

    def _plans(self, indices: np.ndarray) -> Iterator[Scene]:
        layout = lay_out(self.settings, self._draws, indices, self._sprites, self._sprites_of)
        kinds = self.settings.backgrounds
        ground = self._draws("background", indices, 1 + DRAWS)
        columns = layout.names.tolist(), layout.sprites.tolist(), layout.boxes.tolist()
        for count, draws, names, sprites, boxes in zip(layout.count.tolist(), ground, *columns):
            order = in_order(boxes[:count])
            objects = tuple(
                Placed(self.names[names[k]], self._labels[names[k]], sprites[k], tuple(boxes[k])) for k in order
            )
            painted = tuple(sorted(range(count), key=order.__getitem__))
            yield Scene(kinds[draws[0] % len(kinds)], draws[1:], objects, painted)

    def _draw(self, scene: Scene) -> Image.Image:
        canvas = Image.fromarray(background(scene.ground, scene.ground_draws, *self.settings.canvas))
        for place in scene.painted:
            one = scene.objects[place]
            sprite = self._scaled(one)[0]
            canvas.paste(sprite, one.box[:2], sprite)
        return canvas

    def _scaled(self, one: Placed) -> tuple[Image.Image, Image.Image]:
        return self._sprites.scaled(one.sprite, one.box[3], one.box[2])

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no scene {index} of {len(self)}")
        return index % len(self)


@lru_cache(maxsize=8)
def _cut_outs(names: int, variants: int, held_out: bool) -> tuple[list[Name], Sprites, list[list[int]]]:
    """Names, the cut-outs of all, and for each name the numbers of its own."""
    chosen = choose_names(names, variants, held_out)
    ends = np.cumsum([len(name.pictures) for name in chosen]).tolist()
    sprites = Sprites(cut_out([picture for name in chosen for picture in name.pictures]))
    return chosen, sprites, [list(range(end - len(name.pictures), end)) for name, end in zip(chosen, ends)]
