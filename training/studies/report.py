"""A study's data, plot and table, beside the paper's figures."""

import math
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_siglip_ext.files import new_file, write_json, write_text

from .runs import Runs
from .study import Chart, Study


if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 3  # of panels


def write_study_report(study: Study, runs: Runs, seeds: int, folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png of what is finished.

    Returns:
        The paths written.
    """
    charts = study.charts(runs, seeds)
    data, table, plot = (folder / f"{study.name}.{suffix}" for suffix in ("json", "md", "png"))
    write_json(data, [vars(chart) for chart in charts])
    write_text(table, render_tables(study, charts))
    draw(charts, plot)
    return [data, table, plot]


def interval(values: list[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return math.inf
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def render_tables(study: Study, charts: list[Chart]) -> str:
    """Markdown: for each chart a table of ours, and one of the paper's where it has figures."""
    lines = [
        f"# {study.summary[0].upper()}{study.summary[1:]}",
        "",
        f"`siglip-ext-train study {study.name}`: {study.experiment.headline}",
    ]
    notes = {chart.note for chart in charts}
    shared = notes.pop() if len(charts) > 1 and len(notes) == 1 else ""
    lines += ["", shared] if shared else []
    for chart in charts:
        lines += ["", f"## {chart.title}", ""]
        ours, paper = _cells(_with_difference(chart), partial(_mean, digits=chart.digits)), _published(chart)
        unit = "" if chart.y_label == Chart.y_label else f" ({chart.y_label})"
        if paper and set(_places(paper)) <= set(_places(ours)):
            beside = {f"{chart.paper_title}, paper": line for line in paper.values()}
            lines += _table(chart.x_label, {**ours, **beside})
        else:
            lines += _table(f"{chart.x_label}{unit}".strip(), ours)
            lines += ["", f"Published: {chart.paper_title}", "", *_table(chart.x_label, paper)] if paper else []
        lines += ["", chart.note] if chart.note and not shared else []
    return "\n".join(lines) + "\n"


def draw(charts: list[Chart], path: Path) -> None:
    """Panels on a common scale: ours with intervals and single runs, and the paper's where it has figures."""
    from matplotlib.figure import Figure

    panels = [(chart, kind) for chart in charts for kind in ("ours", "paper") if kind == "ours" or chart.paper]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    tops: dict[str, float] = {}
    drawn = []
    for axes, (chart, kind) in zip(grid, panels):
        if kind == "paper":
            _draw_paper(axes, chart)
            continue
        _draw_ours(axes, chart)
        tops[chart.y_label] = max(tops.get(chart.y_label, 0.0), axes.get_ylim()[1])
        drawn.append((axes, chart))
    for axes, chart in drawn:
        # no recall is below 0, though an interval around it may reach there
        axes.set_ylim(-0.03 * tops[chart.y_label], 1.15 * tops[chart.y_label])  # with room for the legend
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    with new_file(path, replace=True) as draft:
        figure.savefig(draft, dpi=110)


def _draw_ours(axes: "Axes", chart: Chart) -> None:
    places = _axis(axes, chart, chart.ours)
    for number, (label, line) in enumerate(chart.ours.items()):
        shift = 0.12 * (number - (len(chart.ours) - 1) / 2)  # intervals side by side
        xs = [x for x in places if line.get(x)]
        at = [places.index(x) + shift for x in xs]
        means = [statistics.fmean(line[x]) for x in xs]
        bars = [0.0 if math.isinf(interval(line[x])) else interval(line[x]) for x in xs]
        style = "o" if chart.categories else "o-"
        points = axes.errorbar(at, means, bars, fmt=style, markersize=5, capsize=3, linewidth=1.2, label=label)
        single = [(place + 0.06, value) for place, x in zip(at, xs) for value in line[x]]
        if single:
            axes.plot(*zip(*single), ".", markersize=3, color=points[0].get_color(), alpha=0.5)
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, fontsize=10)
    if len(chart.ours) > 1:
        axes.legend(fontsize=8)


def _draw_paper(axes: "Axes", chart: Chart) -> None:
    places = _axis(axes, chart, chart.paper)
    for label, line in chart.paper.items():
        at = [places.index(x) for x in line]
        bars = [chart.paper_interval.get(label, {}).get(x, 0.0) for x in line]
        style = "s" if chart.categories else "s--"
        axes.errorbar(at, list(line.values()), bars, fmt=style, markersize=5, capsize=3, linewidth=1.2, label=label)
    low, high = axes.get_ylim()
    room = max(0.0, 2.0 - (high - low)) / 2  # two points at least: less would make much of tenths
    axes.set_ylim(low - room, high + room)
    axes.set_ylabel("%")
    axes.set_title(f"Paper: {chart.paper_title}", fontsize=10)
    if len(chart.paper) > 1:
        axes.legend(fontsize=8)


def _axis(axes: "Axes", chart: Chart, lines: dict[str, dict]) -> list[str]:
    """Label the horizontal axis; returns its places from left to right."""
    places = _places(lines)
    names = [re.sub(r"(?<=\w)-(?=\w)", "-\n", x.replace(", ", ",\n")) for x in places]  # in lines, to fit
    axes.set_xticks(range(len(places)), names, fontsize=8 if chart.categories else None)
    axes.set_xlim(-0.5, max(len(places), 1) - 0.5)
    axes.set_xlabel(chart.x_label)
    axes.grid(axis="y", alpha=0.3)
    return places


def _published(chart: Chart) -> dict[str, dict[str, str]]:
    return {
        label: {
            x: f"{value:.1f}" + (f" ± {chart.paper_interval[label][x]:.1f}" if label in chart.paper_interval else "")
            for x, value in line.items()
        }
        for label, line in chart.paper.items()
    }


def _cells(lines: dict[str, dict], text: Callable[..., str]) -> dict[str, dict[str, str]]:
    return {label: {x: text(value) for x, value in line.items() if value != []} for label, line in lines.items()}


def _places(lines: dict[str, dict]) -> list[str]:
    """The places of all lines, from left to right."""
    return list(dict.fromkeys(x for line in lines.values() for x in line))


def _table(x_label: str, lines: dict[str, dict[str, str]]) -> list[str]:
    places = _places(lines)
    rows = [f"| {x_label} | {' | '.join(lines)} |", "|---|" + "---:|" * len(lines)]
    return rows + [f"| {x} | {' | '.join(line.get(x, '') for line in lines.values())} |" for x in places]


def _with_difference(chart: Chart) -> dict[str, dict[str, list[float]]]:
    """The lines and what they differ by, seed by seed: a seed starts all from the same weights and gives them the same
    batches, as far as these are of one size.

    Two comparable lines are compared with each other, others with their own values at the chart's `reference`.
    """
    lines = chart.ours
    if chart.reference:
        base = {label: line.get(chart.reference, []) for label, line in lines.items()}
        own = {
            f"{label}, less that at {chart.reference}": {
                x: _less(line[x], base[label]) for x in line if x != chart.reference
            }
            for label, line in lines.items()
        }
        return {**lines, **own}
    if len(lines) != 2 or not chart.comparable:
        return lines
    (name, one), (other_name, other) = lines.items()
    return {**lines, f"{other_name} − {name}, by seed": {x: _less(other.get(x, []), one[x]) for x in one}}


def _less(values: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(values, others)] if len(values) == len(others) else []


def _mean(values: list[float], digits: int) -> str:
    half = interval(values)
    spread = "" if math.isinf(half) else f" ± {half:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f}{spread} ({len(values)})"
