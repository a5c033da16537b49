"""The study `curation`: what a reference chooses where captions are wrong, and what that does to recall."""

from ..study import Chart, Plan
from .run import MOMENTS
from .settings import SceneRun


STEPS, REFERENCE_STEPS = 400, 800
SHUFFLED = (0.0, 0.2, 0.4)
SCORES = {"all pairs": None, "learnability": "learnability", "easy reference": "easy_reference"}
FIGURES = {"clean": "clean pairs trained on", "held_out_recall@1": "recall@1"}


def curation(plan: Plan) -> list[Chart]:
    """A half of twice as many examples, chosen by two scores, against examples as they come."""
    charts = []
    for share in SHUFFLED:
        points = {
            label: SceneRun(
                steps=STEPS,
                shuffled=share,
                score=score,
                reference_steps=REFERENCE_STEPS if score else 0,
                quarters=True,
            )
            for label, score in SCORES.items()
        }
        for figure, title in FIGURES.items():
            lines = {
                label: {
                    f"{100 * moment // MOMENTS} %": plan.figures(point, f"{figure}_{moment}")
                    for moment in range(1, MOMENTS + 1)
                }
                for label, point in points.items()
            }
            if share or figure != "clean":  # where none are shuffled all are clean
                heading = f"{share:.0%} of captions shuffled: {title}"
                charts.append(Chart(heading, "share of training", lines, y_label=f"{title}, %"))
    return charts
