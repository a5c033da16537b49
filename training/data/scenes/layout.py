"""Where the emoji of scenes stand, for many scenes at once."""

from dataclasses import dataclass

import numpy as np

from .draws import Draws
from .settings import SceneSettings
from .sprites import Sprites, sides


_ATTEMPTS = 12
_TRIES = 32
# Of the smaller box; one in so many.
_OVERLAP = 10


@dataclass(frozen=True)
class Layout:
    """Scenes by rows, their emoji by columns.

    Args:
        count: int (N,), how many of the columns count.
        names: int (N, K), numbers of names, different ones in a scene.
        sprites: int (N, K), numbers of cut-outs.
        boxes: int (N, K, 4): left, top, width and height in pixels.
    """

    count: np.ndarray
    names: np.ndarray
    sprites: np.ndarray
    boxes: np.ndarray


def lay_out(
    settings: SceneSettings, draws: Draws, indices: np.ndarray, sprites: Sprites, sprites_of: list[list[int]]
) -> Layout:
    """The layouts of scenes by index (N,).

    An emoji is tried in places at random, and smaller from try to try, until it overlaps no other by more than a tenth
    of the smaller box. Where that fails, the scene is begun anew; in the end its emoji are of the smallest size, on a
    grid.

    Args:
        sprites_of: for each name the numbers of its cut-outs.
    """
    low, high = settings.emoji_size
    fewest, most = settings.objects
    rows = len(indices)
    count = fewest + draws("count", indices, 1)[:, 0] % (most - fewest + 1)
    names = np.argsort(draws("names", indices, len(sprites_of)), axis=1, kind="stable")[:, :most]
    table = np.zeros((len(sprites_of), max(map(len, sprites_of))), dtype=np.int64)
    for number, own in enumerate(sprites_of):
        table[number, : len(own)] = own
    lengths = np.array([len(own) for own in sprites_of])
    chosen = table[names, draws("variants", indices, most) % lengths[names]]
    longest = low + draws("sizes", indices, most) % (high - low + 1)
    boxes = np.zeros((rows, most, 4), dtype=np.int64)
    left = np.arange(rows)
    for attempt in range(_ATTEMPTS):
        drawn = draws.under(f"attempt {attempt}")
        boxes[left], good = _one_after_another(
            settings, drawn, indices[left], longest[left], chosen[left], sprites, count[left]
        )
        left = left[~good]
        if not len(left):
            break
    boxes[left] = _on_a_grid(settings, draws, indices[left], chosen[left], sprites)
    return Layout(count, names, chosen, boxes)


def _one_after_another(
    settings: SceneSettings,
    draws: Draws,
    indices: np.ndarray,
    longest: np.ndarray,
    chosen: np.ndarray,
    sprites: Sprites,
    count: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, K, 4), each in the first of its places that fits those before it, and whether all of a scene fit."""
    rows, most = chosen.shape
    low, shrink = settings.emoji_size[0], np.arange(_TRIES)
    boxes, good = np.zeros((rows, most, 4), dtype=np.int64), np.ones(rows, dtype=bool)
    for place in range(most):
        size = longest[:, place, None] - (longest[:, place, None] - low) * shrink // (_TRIES - 1)
        own = chosen[:, place, None]
        tried = _at_random(settings, draws(f"place {place}", indices, 2 * _TRIES), size, own, sprites)
        fits = _fitting(tried, boxes[:, :place])
        boxes[:, place] = tried[np.arange(rows), fits.argmax(axis=1)]
        good &= np.any(fits, axis=1) | (place >= count)
    return boxes, good


def _at_random(
    settings: SceneSettings, draws: np.ndarray, size: np.ndarray, chosen: np.ndarray, sprites: Sprites
) -> np.ndarray:
    """Boxes (N, T, 4) of one emoji a scene, in T sizes and places."""
    canvas_height, canvas_width = settings.canvas
    height, width = sides(size, sprites.heights[chosen], sprites.widths[chosen])
    left = draws[:, :_TRIES] % (canvas_width - width + 1)
    top = draws[:, _TRIES:] % (canvas_height - height + 1)
    return np.stack([left, top, width, height], axis=-1)


def _fitting(tried: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Which of the boxes (N, T, 4) overlap none of others (N, P, 4) too much: bool (N, T)."""
    one, other = tried[:, :, None], placed[:, None]
    shared = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    shared = np.maximum(shared - np.maximum(one[..., :2], other[..., :2]), 0).prod(axis=-1)
    smaller = np.minimum(one[..., 2:].prod(axis=-1), other[..., 2:].prod(axis=-1))
    return np.all(_OVERLAP * shared <= smaller, axis=2)


def _on_a_grid(
    settings: SceneSettings, draws: Draws, indices: np.ndarray, chosen: np.ndarray, sprites: Sprites
) -> np.ndarray:
    """Boxes (N, K, 4) of the smallest size, in different cells at random."""
    low, most = settings.emoji_size[0], settings.objects[1]
    height, width = sides(np.full_like(chosen, low), sprites.heights[chosen], sprites.widths[chosen])
    down, across = (side // low for side in settings.canvas)
    cell = np.argsort(draws("grid", indices, down * across), axis=1, kind="stable")[:, :most]
    return np.stack([cell % across * low, cell // across * low, width, height], axis=-1)
