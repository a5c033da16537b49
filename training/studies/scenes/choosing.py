"""How settings are chosen: on the validation part, with a seed that is not reported."""

import statistics
from collections.abc import Mapping
from dataclasses import replace

from ..study import SWEEP_SEEDS, Plan
from .settings import SceneRun


def best_of(plan: Plan, candidates: Mapping[str, SceneRun], figure: str) -> tuple[str, SceneRun | None]:
    """Ask for the candidates; the name and the settings of the best of them, once all are finished.

    Args:
        figure: the higher, the better.
    """
    seeds = SWEEP_SEEDS[:1]
    wanted = {name: [replace(point, seed=seed) for seed in seeds] for name, point in candidates.items()}
    plan.sweeps += [one for some in wanted.values() for one in some]
    if not all(one in plan.runs for some in wanted.values() for one in some):
        return "", None
    scores = {name: statistics.fmean(plan.runs.values(some, figure)) for name, some in wanted.items()}
    best = max(scores, key=scores.__getitem__)
    return best, candidates[best]
