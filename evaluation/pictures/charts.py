"""Pictures of results: a confusion matrix, bars by language, and how similarities of matched pairs stand out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .style import ACCENT, FAINT, INK, MUTED, RIGHT, WRONG, caption_fonts, chart, cut, quiet, save


def confusion_matrix(
    path: str | Path,
    labels: Sequence[int],
    predicted: Sequence[int],
    names: Sequence[str],
    *,
    most: int = 30,
    title: str = "Confusion",
) -> Path:
    """Draw the share of each class's images that went to each class.

    With more than `most` classes only those are drawn that are confused most, so that the picture can be read.
    """
    from sklearn.metrics import confusion_matrix as count

    counts = count(labels, predicted, labels=range(len(names))).astype(float)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    chosen = np.arange(len(names))
    if len(names) > most:
        errors = counts - np.diag(np.diag(counts))
        chosen = np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:most])
        title = f"{title} (the {most} classes of {len(names)} with the most errors)"
    shares = shares[np.ix_(chosen, chosen)]
    shown = [cut(names[place], 24) for place in chosen]
    side = max(3.5, 0.28 * len(chosen) + 2.2)
    figure, axes = chart(side + 0.8, side, title)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    fonts = caption_fonts(shown)
    axes.set_xticks(range(len(chosen)), shown, rotation=90, fontsize=7.5, fontfamily=fonts)
    axes.set_yticks(range(len(chosen)), shown, fontsize=7.5, fontfamily=fonts)
    axes.set_xlabel("chosen class", color=MUTED)
    axes.set_ylabel("right class", color=MUTED)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if len(chosen) <= 12:
        for row, column in np.ndindex(*shares.shape):
            share = shares[row, column]
            colour = "white" if share > 0.55 else INK if share >= 0.005 else FAINT
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, size=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=lambda value, _: f"{100 * value:.0f} %")
    bar.ax.tick_params(length=0, colors=MUTED, labelsize=8)
    bar.outline.set_visible(False)
    return save(figure, path)


def language_bars(
    path: str | Path, of_language: Mapping[str, Mapping[str, float]], *, title: str = "Retrieval by language"
) -> Path:
    """Draw Recall@1 of both directions for every language, best first, with the means as lines."""
    directions = {"text → image": "text_to_image_recall@1", "image → text": "image_to_text_recall@1"}
    languages = sorted(of_language, key=lambda name: -of_language[name]["text_to_image_recall@1"])
    figure, axes = chart(max(5.0, 0.3 * len(languages) + 1.5), 4, f"{title}: Recall@1")
    places = np.arange(len(languages))
    for offset, (label, key), colour in zip((-0.2, 0.2), directions.items(), (ACCENT, RIGHT)):
        values = [100 * of_language[name][key] for name in languages]
        axes.bar(places + offset, values, width=0.38, color=colour, label=f"{label}, mean {np.mean(values):.1f} %")
        axes.axhline(float(np.mean(values)), color=colour, linewidth=0.9, linestyle="--")
    axes.set_xticks(places, languages, rotation=90 if len(languages) > 12 else 0, fontsize=8)
    axes.yaxis.set_major_formatter("{x:g} %")
    quiet(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path)


def similarity_histogram(
    path: str | Path,
    similarities: Sequence[float] | np.ndarray,
    matched: Sequence[bool] | np.ndarray,
    threshold: float | None = None,
    *,
    title: str = "Similarity of matched and unmatched pairs",
) -> Path:
    """Draw the cosines of matched and of unmatched pairs, each as a density, and the calibrated threshold."""
    scores, truth = np.asarray(similarities, float), np.asarray(matched, bool)
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 60)
    figure, axes = chart(7, 3.6, title)
    for kind, name, colour in ((False, "unmatched", WRONG), (True, "matched", RIGHT)):
        part = scores[truth == kind]
        axes.hist(part, bins=edges.tolist(), density=True, color=colour, alpha=0.65, label=f"{name} ({len(part)})")
    if threshold is not None:
        axes.axvline(threshold, color=ACCENT, linewidth=1.4, label=f"threshold {threshold:.3f}".replace("-", "−"))
    axes.set_yticks([])
    axes.set_xlabel("cosine of image and text", color=MUTED)
    quiet(axes)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return save(figure, path)
