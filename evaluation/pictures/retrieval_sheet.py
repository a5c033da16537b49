"""Pictures of what a model learnt: a retrieval contact sheet and a loss curve, as PNG files.

Drawn with matplotlib's Agg canvas, without pyplot: no display, no global state. DejaVu Sans, which ships with
matplotlib, draws Latin, Greek and Cyrillic captions; for other scripts the fonts of the system are searched.
"""

import os
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image


_BASE_FONT = "DejaVu Sans"
_INK, _MUTED, _FAINT = "#1f2933", "#7b8794", "#e4e7eb"
_RIGHT, _WRONG, _ACCENT = "#1a7f4b", "#9fb3c8", "#2c5f9e"
_RIGHT_FILL = "#c9ead7"
_DPI = 150


@lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[int]:
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
    families = [_BASE_FONT]
    for entry in fontManager.ttflist:
        if entry.name == _BASE_FONT and entry.style == "normal" and entry.weight == 400:
            needed -= _characters(entry.fname)
    # Regular, upright faces only; sorted, so that one system always draws the same. Matplotlib ships a Last Resort
    # font, which claims every character and draws a box for each.
    candidates = sorted(
        {
            (entry.name, entry.fname)
            for entry in fontManager.ttflist
            if entry.style == "normal" and entry.weight in (400, 500) and not entry.name.startswith("Last Resort")
        }
    )
    while needed and candidates:
        covered, name = max(((len(needed & _characters(path)), name) for name, path in candidates), key=lambda x: x[0])
        if not covered:
            break
        families.append(name)
        for other, path in candidates:
            if other == name:
                needed -= _characters(path)
    if needed:
        shown = "".join(chr(code) for code in sorted(needed)[:20])
        warnings.warn(
            f"no installed font has {len(needed)} characters of the captions ({shown}); they appear as boxes. "
            "Install one, e.g. Google's Noto fonts (Debian: fonts-noto-core, fonts-noto-cjk)",
            stacklevel=2,
        )
    return families


def _save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG, replacing `path` only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            FigureCanvasAgg(figure)
            with warnings.catch_warnings():
                # Said once, for all characters, by `caption_fonts`.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def _cut(text: str, cells: int) -> str:
    """`text` in at most `cells` columns (East Asian characters fill two), ellipsis included."""
    used = 0
    for i, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > cells:
            return text[: max(0, i - 1)].rstrip() + "…"
    return text


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _picture(axes: Axes, image: Image.Image, frame: str | None = None) -> None:
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos", aspect="equal")
    _bare(axes)
    if frame is not None:
        for spine in axes.spines.values():
            spine.set(visible=True, color=frame, linewidth=2.5)


def _first(scores: torch.Tensor, right: int, top: int) -> tuple[list[int], int]:
    """The `top` best answers, and the rank of the right one; of equal scores the right one comes last."""
    order = scores.clone()
    order[right] -= 1e-6
    ranking = order.argsort(descending=True, stable=True).tolist()
    return ranking[:top], ranking.index(right) + 1


def retrieval_contact_sheet(
    path: str | Path,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    *,
    queries: int | Sequence[int] = 8,
    top: int = 5,
    seed: int = 0,
    title: str | None = None,
) -> Path:
    """Draw what is retrieved: the best captions of some images on the left, the best images of their captions beside.

    The right answers are green; where one is not among those shown, its rank is given. Every image and caption of the
    set takes part in the retrieval; the queries shown are drawn at random, not chosen.

    Args:
        path: PNG file to write.
        images, captions: the evaluation set, caption i describing image i.
        image_embeds, text_embeds: (N, D), normalised, in the same order. Scores are their cosines.
        queries: how many to draw with `seed`, or which.
        top: answers shown for each.
        title: heading; by default the size of the set.

    Returns:
        `path`.

    Raises:
        ValueError: lengths that differ, or an index out of range.
    """
    count = len(images)
    lengths = {"captions": len(captions), "image_embeds": len(image_embeds), "text_embeds": len(text_embeds)}
    wrong = {name: length for name, length in lengths.items() if length != count}
    if wrong or not count:
        raise ValueError(f"{count} images need as many captions and embeddings, got {wrong or 'none'}")
    if isinstance(queries, int):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        shown = sorted(order[:queries].tolist())
    else:
        shown = list(queries)
        if not all(0 <= query < count for query in shown):
            raise ValueError(f"queries must lie within 0 and {count - 1}, got {shown}")
    top = min(top, count)
    images_of, texts_of = image_embeds.float().cpu(), text_embeds.float().cpu()
    to_text = {query: texts_of @ images_of[query] for query in shown}
    to_image = {query: images_of @ texts_of[query] for query in shown}
    left = {query: _first(to_text[query], query, top) for query in shown}
    right = {query: _first(to_image[query], query, top) for query in shown}

    fonts = caption_fonts([captions[i] for query in shown for i in (query, *left[query][0])])
    title = title or f"Retrieval among {count} images and captions"
    # Inches. A row is a picture with its answers; pictures on the right share its height.
    row, picture, text_width, gap, margin = 1.32, 1.05, 5.1, 0.6, 0.45
    head = 1.15
    right_width = top * picture + (top - 1) * 0.1
    width = margin + picture + 0.25 + text_width + gap + right_width + margin
    height = head + len(shown) * row + 0.5
    figure = Figure(figsize=(width, height))
    text = {"fontfamily": fonts, "color": _INK}

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at inches from the top left."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, words: str, **style) -> None:
        figure.text(x / width, 1 - y / height, words, **{**text, "va": "center", **style})

    answers = margin + picture + 0.25
    pictures = answers + text_width + gap
    write(margin, 0.36, title, fontsize=16, fontweight="bold", fontfamily=[_BASE_FONT])
    write(margin, 0.82, "Image → captions", fontsize=11.5, color=_ACCENT, fontweight="bold")
    write(pictures, 0.82, "Caption → images", fontsize=11.5, color=_ACCENT, fontweight="bold")

    for number, query in enumerate(shown):
        y = head + number * row
        _picture(place(margin, y, picture, picture), images[query])
        found, rank = left[query]
        _caption_bars(
            place(answers, y - 0.04, text_width, picture + 0.08), found, to_text[query], captions, query, text
        )
        if rank > top:
            words = _cut(captions[query], 60)
            write(answers, y + picture + 0.12, f"right: {words} (rank {rank})", fontsize=7.5, color=_RIGHT)

        found, rank = right[query]
        note = "" if rank <= top else f"   (right image: rank {rank})"
        write(pictures, y - 0.01, _cut(captions[query], 64) + note, fontsize=8.5)
        side = picture - 0.16
        for i, answer in enumerate(found):
            axes = place(pictures + i * (picture + 0.1), y + 0.13, side, side)
            _picture(axes, images[answer], _RIGHT if answer == query else _FAINT)
    write(
        margin,
        height - 0.26,
        "Queries drawn at random. Green: the right answer. Numbers: cosine of image and text embedding.",
        fontsize=8,
        color=_MUTED,
    )
    return _save(figure, path)


def _caption_bars(
    axes: Axes, found: list[int], scores: torch.Tensor, captions: Sequence[str], query: int, text
) -> None:
    """Captions one under another, each on a bar as long as its score, the right one green."""
    _bare(axes)
    axes.set(xlim=(0, 1), ylim=(len(found) - 0.5, -0.5))
    for place, answer in enumerate(found):
        score, correct = scores[answer].item(), answer == query
        length = min(1.0, max(0.0, score)) * 0.9
        axes.barh(place, 0.9, height=0.8, color="#f5f7fa", linewidth=0)
        axes.barh(place, length, height=0.8, color=_RIGHT_FILL if correct else _FAINT, linewidth=0)
        style = {**text, "va": "center", "fontsize": 8.5}
        if correct:
            # Fonts of other scripts often have no bold face.
            style |= {"color": _RIGHT, "fontweight": "bold" if text["fontfamily"] == [_BASE_FONT] else "normal"}
        axes.text(0.012, place, _cut(captions[answer], 58 if correct else 66), **style)
        axes.text(0.995, place, f"{score:.2f}".replace("-", "−"), **style, ha="right")


def loss_curve(
    path: str | Path,
    log_history: Sequence[Mapping[str, float]],
    *,
    metrics: Mapping[str, str] | None = None,
    title: str = "Training",
) -> Path:
    """Draw the training loss and the evaluation figures of a run over its steps.

    Args:
        path: PNG file to write.
        log_history: as in Trainer's `trainer_state.json`: mappings with "step" and some of "loss", "eval_loss", ...
        metrics: which metrics, shares between 0 and 1, to draw, and their labels; by default image-to-text Recall@1
            and @5. Those that the history lacks are left out.
        title: heading.

    Returns:
        `path`.

    Raises:
        ValueError: the history has no training loss.
    """
    if metrics is None:
        metrics = {
            "eval_image_to_text_recall@1": "image → text R@1",
            "eval_image_to_text_recall@5": "image → text R@5",
        }

    def series(key: str) -> tuple[list[float], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry and "step" in entry]
        return [step for step, _ in points], [value for _, value in points]

    steps, losses = series("loss")
    if not steps:
        raise ValueError("log_history has no entry with 'step' and 'loss'")
    curves = [(label, *series(key)) for key, label in metrics.items()]
    curves = [curve for curve in curves if curve[1]]

    figure = Figure(figsize=(9.6 if curves else 5.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=_INK)

    panels[0].plot(steps, losses, color=_ACCENT, linewidth=1.8, label="training")
    eval_steps, eval_losses = series("eval_loss")
    if eval_steps:
        panels[0].plot(
            eval_steps, eval_losses, color="#d9822b", linewidth=1.4, marker="o", markersize=4, label="held out"
        )
        panels[0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    if min(losses + eval_losses) > 0:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}" if max(losses) < 20 * min(losses) else "")
    panels[0].set_title("loss", fontsize=10.5, color=_INK, loc="left")

    for panel in panels[1:]:
        colours = (_RIGHT, "#6fb58f", "#d9822b", "#a3417c", _ACCENT)
        for (label, xs, ys), colour in zip(curves, colours):
            percent = [100 * y for y in ys]
            panel.plot(xs, percent, color=colour, linewidth=1.8, marker="o", markersize=4)
            panel.annotate(
                f"{percent[-1]:.0f} %  {label}",
                (xs[-1], percent[-1]),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
                annotation_clip=False,
            )
        panel.set(ylim=(0, 100), xlim=(0, max(steps[-1], max(curve[1][-1] for curve in curves))))
        panel.yaxis.set_major_formatter("{x:g} %")
        panel.set_title("held out", fontsize=10.5, color=_INK, loc="left")
    for panel in panels:
        panel.set_xlabel("step", fontsize=9.5, color=_MUTED)
        panel.tick_params(colors=_MUTED, labelsize=9, which="both", length=0)
        panel.grid(color=_FAINT, linewidth=0.8)
        panel.set_axisbelow(True)
        for side, spine in panel.spines.items():
            spine.set(visible=side == "bottom", color=_FAINT)
    return _save(figure, path)
