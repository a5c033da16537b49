"""What is behind the emoji of a scene; by whole numbers alone, so that it is the same everywhere."""

import numpy as np


DRAWS = 20
_COLORS = 4


def background(kind: str, draws: np.ndarray, height: int, width: int) -> np.ndarray:
    """A ground of one kind, uint8 (H, W, 3).

    Args:
        kind: of `settings.BACKGROUNDS`.
        draws: int (`DRAWS`,), from which colors, direction and widths follow.
    """
    colors = (draws[: 3 * _COLORS] % 256).reshape(_COLORS, 3).astype(np.uint8)
    if kind == "plain":
        return np.broadcast_to(colors[0], (height, width, 3)).copy()
    direction, measure, first = (int(draw) for draw in draws[12:15])
    down, across = np.arange(height)[:, None], np.arange(width)
    if kind == "blocks":
        side = max(2, min(height, width) // (2 + measure % 5))
        cells = (down // side * 7 + across // side * (3 + direction % 8) + first % 97) ** 2 // 3 % _COLORS
        return colors[cells]
    along = (down + 0 * across, across + 0 * down, down + across)[direction % 3]
    if kind == "stripes":
        band = max(2, min(height, width) // (4 + measure % 12))
        return colors[(along + first % band) // band % 2]
    ends = colors[:2].astype(np.int64)
    return (ends[0] + (ends[1] - ends[0]) * along[..., None] // max(1, int(along[-1, -1]))).astype(np.uint8)
