"""Learning rate × weight decay: how much a loss forgives (arXiv 2303.15343, where the values are only drawn)."""

import statistics
from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import DRAWN_ONLY, Chart, Study, recall, seed_by_seed, tuned_loss


LOSSES = ("sigmoid", "softmax")
RATES = (5e-4, 2e-3, 8e-3)
DECAYS = (1e-4, 1e-2)


def settings_of(runs: Runs, loss: str, rate: float, decay: float) -> Settings | None:
    _, chosen = tuned_loss(runs, loss)
    return None if chosen is None else replace(chosen, learning_rate=rate, weight_decay=decay)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    sweeps = [one for loss in LOSSES for one in tuned_loss(runs, loss)[0]]
    points = [settings_of(runs, loss, rate, decay) for decay in DECAYS for rate in RATES for loss in LOSSES]
    return sweeps + seed_by_seed(points, seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    panels = []
    for decay in DECAYS:
        ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
        for loss in LOSSES:
            for rate in RATES:
                one = settings_of(runs, loss, rate, decay)
                if one is not None:
                    ours[loss][f"{rate:g}"] = recall(runs, one, seeds)
        panels.append(Chart(f"Weight decay {decay:g}", "learning rate", ours, note=DRAWN_ONLY))
    return [*panels, forgiven(panels)]


def forgiven(panels: list[Chart]) -> Chart:
    """What is left of a loss's best point in the mean over the grid, seed by seed: the higher, the more it forgives.

    The best point is that with the highest mean over seeds.
    """
    ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
    for loss in LOSSES:
        grid = [values for panel in panels for values in panel.ours[loss].values() if values]
        if len(grid) == len(RATES) * len(DECAYS) and len({len(values) for values in grid}) == 1:
            best = max(grid, key=statistics.fmean)
            ours[loss]["grid"] = [100 * statistics.fmean(seed) / top for *seed, top in zip(*grid, best) if top > 0]
    note = "The best point is chosen on the figures shown, alike for both losses."
    return Chart("Mean of the grid", "", ours, note=note, categories=True, y_label="% of the best point")


STUDY = Study("robustness", "learning rate × weight decay", wanted, charts)
