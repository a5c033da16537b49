"""How all pictures look and are written: colours, fonts that have the characters of a text, PNG files.

Drawn with matplotlib's Agg canvas, without pyplot: no display, no global state. DejaVu Sans, which ships with
matplotlib, draws Latin, Greek and Cyrillic captions; for other scripts the fonts of the system are searched.
"""

import unicodedata
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

from modeling_siglip_ext.files import new_file


BASE_FONT = "DejaVu Sans"
INK, MUTED, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
RIGHT, WRONG, ACCENT = "#1a7f4b", "#9fb3c8", "#2c5f9e"
RIGHT_FILL = "#c9ead7"
DPI = 150


@lru_cache(maxsize=512)
def characters(path: str) -> frozenset[int]:
    """Code points a font file can draw; none for a bitmap font, which Agg cannot scale, or an unreadable file."""
    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def caption_fonts(texts: Iterable[str]) -> list[str]:
    """Font families that together draw `texts`, the first choice first.

    Warns, naming the characters, where no font of the system has them.
    """
    needed = {ord(character) for text in texts for character in text if character.isprintable()}
    # Regular, upright faces only; sorted, so that one system always draws the same. Matplotlib ships a Last Resort
    # font, which claims every character and draws a box for each.
    candidates = sorted(
        {
            (entry.name, entry.fname)
            for entry in fontManager.ttflist
            if entry.style == "normal" and entry.weight in (400, 500) and not entry.name.startswith("Last Resort")
        }
    )
    families, name, covered = [], BASE_FONT, 1
    while covered:
        families.append(name)
        needed = needed.difference(*(characters(path) for other, path in candidates if other == name))
        reach = ((len(needed & characters(path)), name) for name, path in candidates if needed)
        covered, name = max(reach, key=lambda one: one[0], default=(0, ""))
    if needed:
        shown = "".join(chr(code) for code in sorted(needed)[:20])
        warnings.warn(
            f"no installed font has {len(needed)} characters of the captions ({shown}); they appear as boxes. "
            "Install one, e.g. Google's Noto fonts (Debian: fonts-noto-core, fonts-noto-cjk)",
            stacklevel=2,
        )
    return families


def save(figure: Canvas, path: str | Path) -> Path:
    """Write the figure as PNG, replacing `path` only when it is complete."""
    FigureCanvasAgg(figure)
    with new_file(path, replace=True) as draft, warnings.catch_warnings():
        # Said once, for all characters, by `caption_fonts`.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(draft, format="png", dpi=DPI, facecolor="white")
    return Path(path)


def cut(text: str, cells: int) -> str:
    """`text` in at most `cells` columns (East Asian characters fill two), ellipsis included."""
    used = 0
    for i, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > cells:
            return text[: max(0, i - 1)].rstrip() + "…"
    return text


def bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def chart(width: float, height: float, title: str) -> tuple[Canvas, Axes]:
    """A figure, in inches, with one pair of axes under a title."""
    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left", color=INK, fontweight="bold")
    return figure, axes


def quiet(axes: Axes, grid: Literal["both", "y"] = "y") -> None:
    axes.tick_params(which="both", length=0, colors=MUTED)
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=FAINT)
