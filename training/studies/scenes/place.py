"""The study `place`: which initial values let the tokens of a small tower keep their place."""

from dataclasses import replace
from itertools import combinations

from ...components.initial_values import InitialValues
from ..study import Chart, Plan
from .experiment import chart_of
from .settings import SceneRun


# Each of the three changes, and all ways to put them together; the one of patches is another than in `PLACE`.
CHANGES = {"positions": {"position_std": 0.7}, "patches": {"patch_scale": 3.0}, "blocks": {"residual_scale": 0.2}}
OWN = "SigLIP's"


def start(names: tuple[str, ...]) -> InitialValues:
    return InitialValues(**{field: value for name in names for field, value in CHANGES[name].items()})


STARTS = [names for count in range(len(CHANGES) + 1) for names in combinations(CHANGES, count)]
INITIAL = {" + ".join(names) or OWN: start(names) for names in STARTS}
FIGURES = {
    "position_r2": ("A token's own position at the output", "R², %"),
    "miou": ("Linear segmentation from tokens", "mIoU, %"),
    "miou_pooled": ("Linear segmentation from tokens and pooled vector", "mIoU, %"),
    "one_referring": ("Boxes of phrases, one emoji a scene", "right at IoU 0.5, %"),
    "names": ("Captions", "names found, %"),
    "recall@1": ("Retrieval", "recall@1, %"),
}


def place(plan: Plan) -> list[Chart]:
    """Sigmoid loss and captions with boxes, from eight starts."""
    base = SceneRun(steps=600, captioning=1.0)
    points = {label: replace(base, initial=values) for label, values in INITIAL.items()}
    return [
        chart_of(
            plan,
            title,
            points,
            {f"held_out_{figure}": "ours"},
            x_label="initial values",
            y_label=unit,
            reference=OWN,
        )
        for figure, (title, unit) in FIGURES.items()
    ]
