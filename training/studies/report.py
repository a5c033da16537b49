"""A study's data, plot and table, beside the paper's figures."""

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .runs import Runs
from .study import Figure, Study


if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 3  # of panels


def write_report(study: Study, runs: Runs, seeds: int, folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png of what is finished.

    Returns:
        The paths written.
    """
    figures = study.figures(runs, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    data, table, plot = (folder / f"{study.name}.{suffix}" for suffix in ("json", "md", "png"))
    _write(data, json.dumps([vars(figure) for figure in figures], indent=1, ensure_ascii=False).encode() + b"\n")
    _write(table, render_tables(study, figures).encode())
    draw(figures, plot)
    return [data, table, plot]


def interval(values: list[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return math.inf
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def render_tables(study: Study, figures: list[Figure]) -> str:
    """Markdown: for each figure a table of ours, and one of the paper's where it has figures."""
    lines = [
        f"# {study.summary[0].upper()}{study.summary[1:]}",
        "",
        f"`siglip-ext-train study {study.name}`: small towers from scratch on the bundled emoji. Held-out recall@1 in "
        "percent, mean of both ways over 502 pairs (chance 0.2), ± 95 % interval over seeds.",
    ]
    for figure in figures:
        lines += ["", f"## {figure.title}", ""]
        ours, paper = _cells(_with_difference(figure), _mean), _published(figure)
        unit = "" if figure.y_label == Figure.y_label else f" ({figure.y_label})"
        if paper and _places(paper) <= _places(ours):
            beside = {f"{figure.paper_title}, paper": line for line in paper.values()}
            lines += _table(figure.x_label, {**ours, **beside})
        else:
            lines += _table(f"{figure.x_label}{unit}".strip(), ours)
            lines += ["", f"Published: {figure.paper_title}", "", *_table(figure.x_label, paper)] if paper else []
        lines += ["", figure.note] if figure.note else []
    return "\n".join(lines) + "\n"


def draw(figures: list[Figure], path: Path) -> None:
    """Panels on a common scale: ours with intervals and single runs, and the paper's where it has figures."""
    from matplotlib.figure import Figure as Canvas

    panels = [(figure, kind) for figure in figures for kind in ("ours", "paper") if kind == "ours" or figure.paper]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    canvas = Canvas(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    tops: dict[str, float] = {}
    drawn = []
    for axes, (figure, kind) in zip(grid, panels):
        if kind == "paper":
            _draw_paper(axes, figure)
            continue
        _draw_ours(axes, figure)
        tops[figure.y_label] = max(tops.get(figure.y_label, 0.0), axes.get_ylim()[1])
        drawn.append((axes, figure))
    for axes, figure in drawn:
        # no recall is below 0, though an interval around it may reach there
        axes.set_ylim(-0.03 * tops[figure.y_label], 1.15 * tops[figure.y_label])  # with room for the legend
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    temporary = path.with_name(f"{path.stem}.tmp.png")
    canvas.savefig(temporary, dpi=110)
    temporary.replace(path)


def _draw_ours(axes: "Axes", figure: Figure) -> None:
    places = _axis(axes, figure, figure.ours)
    for number, (label, line) in enumerate(figure.ours.items()):
        shift = 0.12 * (number - (len(figure.ours) - 1) / 2)  # intervals side by side
        xs = [x for x in places if line.get(x)]
        at = [places.index(x) + shift for x in xs]
        means = [statistics.fmean(line[x]) for x in xs]
        bars = [0.0 if math.isinf(interval(line[x])) else interval(line[x]) for x in xs]
        style = "o" if figure.categories else "o-"
        points = axes.errorbar(at, means, bars, fmt=style, markersize=5, capsize=3, linewidth=1.2, label=label)
        single = [(place + 0.06, value) for place, x in zip(at, xs) for value in line[x]]
        axes.plot(*zip(*single), ".", markersize=3, color=points[0].get_color(), alpha=0.5) if single else None
    axes.set_ylabel(figure.y_label)
    axes.set_title(figure.title, fontsize=10)
    if len(figure.ours) > 1:
        axes.legend(fontsize=8)


def _draw_paper(axes: "Axes", figure: Figure) -> None:
    places = _axis(axes, figure, figure.paper)
    for label, line in figure.paper.items():
        at = [places.index(x) for x in line]
        bars = [figure.paper_interval.get(label, {}).get(x, 0.0) for x in line]
        style = "s" if figure.categories else "s--"
        axes.errorbar(at, list(line.values()), bars, fmt=style, markersize=5, capsize=3, linewidth=1.2, label=label)
    low, high = axes.get_ylim()
    room = max(0.0, 2.0 - (high - low)) / 2  # two points at least: less would make much of tenths
    axes.set_ylim(low - room, high + room)
    axes.set_ylabel("%")
    axes.set_title(f"Paper: {figure.paper_title}", fontsize=10)
    if len(figure.paper) > 1:
        axes.legend(fontsize=8)


def _axis(axes: "Axes", figure: Figure, lines: dict[str, dict]) -> list[str]:
    """Label the horizontal axis; returns its places from left to right."""
    places = list(dict.fromkeys(x for line in lines.values() for x in line))
    names = [re.sub(r"(?<=\w)-(?=\w)", "-\n", x.replace(", ", ",\n")) for x in places]  # in lines, to fit
    axes.set_xticks(range(len(places)), names, fontsize=8 if figure.categories else None)
    axes.set_xlim(-0.5, max(len(places), 1) - 0.5)
    axes.set_xlabel(figure.x_label)
    axes.grid(axis="y", alpha=0.3)
    return places


def _published(figure: Figure) -> dict[str, dict[str, str]]:
    return {
        label: {
            x: f"{value:.1f}" + (f" ± {figure.paper_interval[label][x]:.1f}" if label in figure.paper_interval else "")
            for x, value in line.items()
        }
        for label, line in figure.paper.items()
    }


def _cells(lines: dict[str, dict], text: Callable[..., str]) -> dict[str, dict[str, str]]:
    return {label: {x: text(value) for x, value in line.items() if value != []} for label, line in lines.items()}


def _places(lines: dict[str, dict]) -> set[str]:
    return {x for line in lines.values() for x in line}


def _table(x_label: str, lines: dict[str, dict[str, str]]) -> list[str]:
    places = list(dict.fromkeys(x for line in lines.values() for x in line))
    rows = [f"| {x_label} | {' | '.join(lines)} |", "|---|" + "---:|" * len(lines)]
    return rows + [f"| {x} | {' | '.join(line.get(x, '') for line in lines.values())} |" for x in places]


def _with_difference(figure: Figure) -> dict[str, dict[str, list[float]]]:
    """The lines and what they differ by, seed by seed: a seed starts all from the same weights and gives them the same
    batches, as far as these are of one size.

    Two lines are compared with each other, more or one with their own values at the figure's `reference`.
    """
    lines = figure.ours
    if figure.reference:
        base = {label: line.get(figure.reference, []) for label, line in lines.items()}
        own = {
            f"{label}, less that at {figure.reference}": {
                x: _less(line[x], base[label]) for x in line if x != figure.reference
            }
            for label, line in lines.items()
        }
        return {**lines, **own}
    if len(lines) != 2:
        return lines
    (name, one), (other_name, other) = lines.items()
    return {**lines, f"{other_name} − {name}, by seed": {x: _less(other.get(x, []), one[x]) for x in one}}


def _less(values: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(values, others)] if len(values) == len(others) else []


def _mean(values: list[float]) -> str:
    half = interval(values)
    spread = "" if math.isinf(half) else f" ± {half:.1f}"
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)})"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
