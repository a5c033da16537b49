"""Bias and temperature at the start of training (arXiv 2303.15343)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import BASE_BATCH, Figure, Study, base_sweep, recall, seeded


# label: temperature, bias; None is -log(batch size), which the paper does not have
STARTS = {
    "b = 0, t = 1": (1.0, 0.0),
    "b = 0, t = 10": (10.0, 0.0),
    "b = -10, t = 10": (10.0, -10.0),
    "b = -log B, t = 10": (10.0, None),
}
PAPER = {
    "paper": {"b = 0, t = 1": 53.7, "b = 0, t = 10": 61.7, "b = -10, t = 10": 63.0},
}


def starts(runs: Runs) -> dict[str, Settings]:
    _, chosen = base_sweep(runs, "sigmoid", BASE_BATCH)
    if chosen is None:
        return {}
    return {
        label: replace(chosen, temperature=temperature, bias=bias) for label, (temperature, bias) in STARTS.items()
    }


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    settings, _ = base_sweep(runs, "sigmoid", BASE_BATCH)
    for one in starts(runs).values():
        settings += seeded(one, seeds)
    return settings


def figures(runs: Runs, seeds: int) -> list[Figure]:
    ours = {"sigmoid": {label: recall(runs, one, seeds) for label, one in starts(runs).items()}}
    return [Figure("Bias and temperature at the start", "start", ours, "ImageNet 0-shot", PAPER)]


STUDY = Study("initialisation", "bias and temperature at the start", wanted, figures)
