"""A contact sheet of what is retrieved: captions of images, and images of captions, the right ones green."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image

from modeling_siglip_ext.images import load_image

from .style import ACCENT, BASE_FONT, FAINT, INK, MUTED, RIGHT, RIGHT_FILL, bare, caption_fonts, cut, save


LEGEND = "Queries drawn at random. Green: the right answer. Numbers: cosine of image and text embedding."


def _picture(axes: Axes, image: Image.Image, frame: str | None = None) -> None:
    axes.imshow(np.asarray(load_image(image)), interpolation="lanczos", aspect="equal")
    bare(axes)
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
    figure = Canvas(figsize=(width, height))
    text: dict[str, Any] = {"fontfamily": fonts, "color": INK}

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at inches from the top left."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, words: str, **style: Any) -> None:
        options: dict[str, Any] = {**text, "va": "center", **style}
        figure.text(x / width, 1 - y / height, words, **options)

    answers = margin + picture + 0.25
    pictures = answers + text_width + gap
    write(margin, 0.36, title, fontsize=16, fontweight="bold", fontfamily=[BASE_FONT])
    write(margin, 0.82, "Image → captions", fontsize=11.5, color=ACCENT, fontweight="bold")
    write(pictures, 0.82, "Caption → images", fontsize=11.5, color=ACCENT, fontweight="bold")

    for number, query in enumerate(shown):
        y = head + number * row
        _picture(place(margin, y, picture, picture), images[query])
        found, rank = left[query]
        _caption_bars(
            place(answers, y - 0.04, text_width, picture + 0.08), found, to_text[query], captions, query, text
        )
        if rank > top:
            words = cut(captions[query], 60)
            write(answers, y + picture + 0.12, f"right: {words} (rank {rank})", fontsize=7.5, color=RIGHT)

        found, rank = right[query]
        note = "" if rank <= top else f"   (right image: rank {rank})"
        write(pictures, y - 0.01, cut(captions[query], 64) + note, fontsize=8.5)
        side = picture - 0.16
        for i, answer in enumerate(found):
            axes = place(pictures + i * (picture + 0.1), y + 0.13, side, side)
            _picture(axes, images[answer], RIGHT if answer == query else FAINT)
    write(margin, height - 0.26, LEGEND, fontsize=8, color=MUTED)
    return save(figure, path)


def _caption_bars(
    axes: Axes, found: list[int], scores: torch.Tensor, captions: Sequence[str], query: int, text: dict[str, Any]
) -> None:
    """Captions one under another, each on a bar as long as its score, the right one green."""
    bare(axes)
    axes.set(xlim=(0, 1), ylim=(len(found) - 0.5, -0.5))
    for place, answer in enumerate(found):
        score, correct = scores[answer].item(), answer == query
        length = min(1.0, max(0.0, score)) * 0.9
        axes.barh(place, 0.9, height=0.8, color="#f5f7fa", linewidth=0)
        axes.barh(place, length, height=0.8, color=RIGHT_FILL if correct else FAINT, linewidth=0)
        style: dict[str, Any] = {**text, "va": "center", "fontsize": 8.5}
        if correct:
            # Fonts of other scripts often have no bold face.
            style |= {"color": RIGHT, "fontweight": "bold" if text["fontfamily"] == [BASE_FONT] else "normal"}
        axes.text(0.012, place, cut(captions[answer], 58 if correct else 66), **style)
        axes.text(0.995, place, f"{score:.2f}".replace("-", "−"), **style, ha="right")
