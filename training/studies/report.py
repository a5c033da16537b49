"""A study's data, plot and table, beside the paper's figures."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from .runs import Runs
from .study import Figure, Study


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
        ours, paper = _cells(_with_difference(figure.ours), _mean), _cells(figure.paper, lambda value: f"{value:.1f}")
        if paper and _places(paper) <= _places(ours):
            lines += _table(
                figure.x_label, {**ours, **{f"{figure.paper_title}, paper": line for line in paper.values()}}
            )
        else:
            lines += _table(figure.x_label, ours)
            lines += ["", f"Published: {figure.paper_title}", "", *_table(figure.x_label, paper)] if paper else []
        lines += ["", figure.note] if figure.note else []
    return "\n".join(lines) + "\n"


def draw(figures: list[Figure], path: Path) -> None:
    """A row of panels: ours with intervals and single runs, the paper's beside them where it has figures."""
    from matplotlib.figure import Figure as Canvas

    panels = [(figure, kind) for figure in figures for kind in ("ours", "paper") if kind == "ours" or figure.paper]
    canvas = Canvas(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (figure, kind) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels):
        lines = figure.ours if kind == "ours" else figure.paper
        places = list(dict.fromkeys(x for line in lines.values() for x in line))
        for label, line in lines.items():
            xs = [x for x in places if x in line and line[x] != []]
            at = [places.index(x) for x in xs]
            if kind == "paper":
                axes.plot(at, [line[x] for x in xs], "o-", label=label)
                continue
            means = [statistics.fmean(line[x]) for x in xs]
            bars = [0.0 if math.isinf(interval(line[x])) else interval(line[x]) for x in xs]
            drawn = axes.errorbar(at, means, bars, fmt="o-", capsize=3, label=label)
            single = [(place, value) for place, x in zip(at, xs) for value in line[x]]
            axes.plot(*zip(*single), ".", color=drawn[0].get_color(), alpha=0.4) if single else None
        axes.set_xticks(range(len(places)), places, rotation=20 if max(map(len, places), default=0) > 8 else 0)
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel("held-out recall@1, %" if kind == "ours" else "%")
        axes.set_title(figure.title if kind == "ours" else f"Paper: {figure.paper_title}", fontsize=10)
        if len(lines) > 1:
            axes.legend(fontsize=8)
    temporary = path.with_name(f"{path.stem}.tmp.png")
    canvas.savefig(temporary, dpi=110)
    temporary.replace(path)


def _cells(lines: dict[str, dict], text: Callable[..., str]) -> dict[str, dict[str, str]]:
    return {label: {x: text(value) for x, value in line.items() if value != []} for label, line in lines.items()}


def _places(lines: dict[str, dict]) -> set[str]:
    return {x for line in lines.values() for x in line}


def _table(x_label: str, lines: dict[str, dict[str, str]]) -> list[str]:
    places = list(dict.fromkeys(x for line in lines.values() for x in line))
    rows = [f"| {x_label} | {' | '.join(lines)} |", "|---|" + "---:|" * len(lines)]
    return rows + [f"| {x} | {' | '.join(line.get(x, '') for line in lines.values())} |" for x in places]


def _with_difference(lines: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Two lines and their difference at each place, seed by seed: a seed starts both from the same weights and gives
    them the same batches."""
    if len(lines) != 2:
        return lines
    (name, one), (other_name, other) = lines.items()
    both = {x: [b - a for a, b in zip(one[x], other[x])] for x in one if len(one[x]) == len(other.get(x, []))}
    return {**lines, f"{other_name} − {name}, by seed": both}


def _mean(values: list[float]) -> str:
    half = interval(values)
    spread = "" if math.isinf(half) else f" ± {half:.1f}"
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)})"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
