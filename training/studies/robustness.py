"""Learning rate × weight decay: how much a loss forgives (arXiv 2303.15343, where the values are only drawn)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import BASE_BATCH, DRAWN_ONLY, Figure, Study, base_sweep, recall, seeded


LOSSES = ("sigmoid", "softmax")
RATES = (1e-3, 2e-3, 4e-3)
DECAYS = (1e-5, 1e-4, 1e-3)


def settings_of(runs: Runs, loss: str, rate: float, decay: float) -> Settings | None:
    _, chosen = base_sweep(runs, loss, BASE_BATCH)
    return None if chosen is None else replace(chosen, learning_rate=rate, weight_decay=decay)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    settings = [one for loss in LOSSES for one in base_sweep(runs, loss, BASE_BATCH)[0]]
    found = [settings_of(runs, loss, rate, decay) for decay in DECAYS for rate in RATES for loss in LOSSES]
    return settings + [one for chosen in found if chosen is not None for one in seeded(chosen, seeds)]


def figures(runs: Runs, seeds: int) -> list[Figure]:
    panels = []
    for decay in DECAYS:
        ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
        for loss in LOSSES:
            for rate in RATES:
                one = settings_of(runs, loss, rate, decay)
                if one is not None:
                    ours[loss][f"{rate:g}"] = recall(runs, one, seeds)
        panels.append(Figure(f"Weight decay {decay:g}", "learning rate", ours, note=DRAWN_ONLY))
    return panels


STUDY = Study("robustness", "learning rate × weight decay", wanted, figures)
