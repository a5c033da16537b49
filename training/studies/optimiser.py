"""Optimisers: ScalingViT-Adafactor against AdamW, the second moment's decay, and Lion (arXiv 2303.15343)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import BASE_BATCH, LEARNING_RATES, Figure, Study, base_sweep, recall, seeded, sweep


# label: optimizer, beta2, learning rates; Lion's steps have all the same size, so its rates are smaller
OPTIMIZERS = {
    "AdamW, β2 0.95": ("adamw", 0.95, LEARNING_RATES),
    "AdamW, β2 0.999": ("adamw", 0.999, LEARNING_RATES),
    "ScalingViT-Adafactor": ("scaling_vit_adafactor", 0.95, LEARNING_RATES),
    "Lion": ("lion", 0.95, (2e-4, 5e-4, 1e-3)),
}
PAPER = {"paper": {"AdamW, β2 0.95": 70.3, "ScalingViT-Adafactor": 70.1}}


def candidates(runs: Runs, label: str) -> list[Settings]:
    """A sweep of the learning rate at the temperature that the base sweep chose."""
    _, chosen = base_sweep(runs, "sigmoid", BASE_BATCH)
    if chosen is None:
        return []
    optimizer, beta2, rates = OPTIMIZERS[label]
    return sweep(replace(chosen, optimizer=optimizer, beta2=beta2), learning_rate=rates)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    settings, _ = base_sweep(runs, "sigmoid", BASE_BATCH)
    for label in OPTIMIZERS:
        options = candidates(runs, label)
        chosen = runs.best(options) if options else None
        settings += options if chosen is None else [*options, *seeded(chosen, seeds)]
    return settings


def figures(runs: Runs, seeds: int) -> list[Figure]:
    ours = {}
    for label in OPTIMIZERS:
        options = candidates(runs, label)
        chosen = runs.best(options) if options else None
        if chosen is not None:
            ours[label] = recall(runs, chosen, seeds)
    return [Figure("Optimisers", "optimiser", {"sigmoid": ours}, "ImageNet 0-shot", PAPER)]


STUDY = Study("optimizers", "AdamW, ScalingViT-Adafactor and Lion", wanted, figures)
