"""Figures of a model by the number of patches it sees of an image, as figure 3 of the SigLIP 2 paper draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from .style import ACCENT, INK, MUTED, WRONG, quiet, save


@dataclass(frozen=True)
class Panel:
    """One figure of a model, a share between 0 and 1, by the number of patches.

    Args:
        title: what the figure is.
        values: by number of patches.
        published: the same of other models, by their names.
    """

    title: str
    values: Mapping[int, float]
    published: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


def figures_by_length(path: str | Path, panels: Sequence[Panel], *, title: str = "By sequence length") -> Path:
    """Draw each panel as a curve over the number of patches, with published figures behind it in grey."""
    figure = Canvas(figsize=(5.6 * len(panels) + 0.4, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK, fontweight="bold")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw_panel(axes, panel)
    return save(figure, path)


def draw_panel(axes: Axes, panel: Panel) -> None:
    marks = {0: "o", 1: "s", 2: "^", 3: "D"}
    for place, (name, values) in enumerate(panel.published.items()):
        whole = "fixed" not in name
        axes.plot(
            list(values),
            [100 * value for value in values.values()],
            color=MUTED if whole else WRONG,
            linestyle="-" if whole else "--",
            linewidth=1.2,
            marker=marks[place % len(marks)],
            markersize=4,
            label=f"{name}, published",
        )
    lengths, shares = list(panel.values), [100 * value for value in panel.values.values()]
    axes.plot(lengths, shares, color=ACCENT, linewidth=2, marker="o", markersize=6, label="this model", zorder=3)
    for length, share in zip(lengths, shares):
        axes.annotate(
            f"{share:.1f}", (length, share), (0, 7), textcoords="offset points", ha="center", size=8, color=ACCENT
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.08, y=0.14)
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_title(panel.title, fontsize=9.5, loc="left", color=INK)
    axes.set_xlabel("patches of an image, at most", color=MUTED, fontsize=9)
    quiet(axes)
    if panel.published:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
