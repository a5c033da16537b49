"""What the runs on scenes are, and lines over several figures of them."""

from collections.abc import Mapping

from ..study import Chart, Experiment, Plan
from .data import make_shard
from .run import train_and_evaluate
from .settings import SceneRun


SCENES = Experiment(
    SceneRun,
    train_and_evaluate,
    "scene_runs.jsonl",
    "small towers from scratch on scenes of one to three of 26 emoji, 72 pixels, 36 patches. On 500 held-out scenes "
    "that settings were not chosen on, ± 95 % interval over seeds.",
    accelerated=True,
    needs=SceneRun.preparations,
    prepare=make_shard,
)


def chart_of(
    plan: Plan,
    title: str,
    points: Mapping[str, SceneRun | None],
    figures: Mapping[str, str],
    *,
    x_label: str = "settings",
    y_label: str = "%",
    scale: float = 100.0,
    digits: int = 1,
    reference: str = "",
    comparable: bool = False,
    note: str = "",
    paper_title: str = "",
    paper: Mapping[str, float] | None = None,
) -> Chart:
    """A chart of points by name, with a line for each figure.

    Args:
        figures: names of held-out figures and of their lines.
        comparable: whether the figures are of one kind.
        paper: published figures of some points.
    """
    lines = {
        label: {name: plan.figures(point, figure, scale) for name, point in points.items()}
        for figure, label in figures.items()
    }
    published = {} if paper is None else {"paper": dict(paper)}
    return Chart(
        title,
        x_label,
        lines,
        paper_title,
        published,
        note=note,
        reference=reference,
        comparable=comparable,
        categories=True,
        y_label=y_label,
        digits=digits,
    )
