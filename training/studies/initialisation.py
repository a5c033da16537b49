"""Bias and temperature at the start of training (arXiv 2303.15343)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import Chart, Study, recall, seed_by_seed, tuned_loss


# label: temperature, bias, whether it is learnt; a bias None is -log(batch size), which the paper does not have
STARTS = {
    "no b, t = 10": (10.0, 0.0, False),
    "b = 0, t = 1": (1.0, 0.0, True),
    "b = 0, t = 10": (10.0, 0.0, True),
    "b = -10, t = 10": (10.0, -10.0, True),
    "b = -log B, t = 10": (10.0, None, True),
}
PAPER = {
    "paper": {"no b, t = 10": 62.0, "b = 0, t = 1": 53.7, "b = 0, t = 10": 61.7, "b = -10, t = 10": 63.0},
}


def starts(runs: Runs) -> dict[str, Settings]:
    """All with the learning rate of the base sweep, as the paper changes nothing else."""
    _, chosen = tuned_loss(runs)
    if chosen is None:
        return {}
    return {
        label: replace(chosen, temperature=temperature, bias=bias, learns_bias=learns)
        for label, (temperature, bias, learns) in STARTS.items()
    }


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    return tuned_loss(runs)[0] + seed_by_seed(starts(runs).values(), seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    points = starts(runs)
    ours = {"sigmoid": {label: recall(runs, one, seeds) for label, one in points.items()}}
    rates = {f"{one.learning_rate:g}" for one in points.values()}
    note = f"Batch 32, learning rate {', '.join(rates)}, chosen with b = -log B." if rates else ""
    return [
        Chart(
            "Bias and temperature at the start",
            "start",
            ours,
            "ImageNet 0-shot",
            PAPER,
            note=note,
            reference="b = 0, t = 10",
            categories=True,
        )
    ]


STUDY = Study("initialisation", "bias and temperature at the start", wanted, charts)
