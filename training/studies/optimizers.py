"""Optimisers: ScalingViT-Adafactor against AdamW, the second moment's decay, and Lion (arXiv 2303.15343)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .study import LEARNING_RATES, Chart, Study, recall, seed_by_seed, sweep, tuned_loss


# label: optimizer, beta2, learning rates to begin with; Lion's steps have all the same size, so its rates are smaller
OPTIMIZERS = {
    "AdamW, β2 0.95": ("adamw", 0.95, LEARNING_RATES),
    "AdamW, β2 0.999": ("adamw", 0.999, LEARNING_RATES),
    "ScalingViT-Adafactor": ("scaling_vit_adafactor", 0.95, LEARNING_RATES),
    "Lion": ("lion", 0.95, (2.5e-4, 5e-4, 1e-3)),
}
PAPER = {"paper": {"AdamW, β2 0.95": 70.3, "ScalingViT-Adafactor": 70.1}}
PAPER_INTERVAL = {"paper": {"AdamW, β2 0.95": 0.1, "ScalingViT-Adafactor": 0.2}}


def swept(runs: Runs, label: str) -> tuple[list[Settings], Settings | None]:
    """A sweep of the learning rate at the temperature that the base sweep chose."""
    _, chosen = tuned_loss(runs)
    if chosen is None:
        return [], None
    optimizer, beta2, rates = OPTIMIZERS[label]
    return sweep(runs, replace(chosen, optimizer=optimizer, beta2=beta2), "learning_rate", rates)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    found = [swept(runs, label) for label in OPTIMIZERS]
    sweeps = [one for candidates, _ in found for one in candidates]
    return tuned_loss(runs)[0] + sweeps + seed_by_seed((chosen for _, chosen in found), seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    ours, choices = {}, []
    for label in OPTIMIZERS:
        candidates, chosen = swept(runs, label)
        if chosen is not None:
            ours[label] = recall(runs, chosen, seeds)
            rates = sorted({one.learning_rate for one in candidates})
            choices.append(f"{label} {chosen.learning_rate:g} (of {rates[0]:g} to {rates[-1]:g})")
    note = f"Learning rates chosen on validation: {'; '.join(choices)}." if choices else ""
    return [
        Chart(
            "Optimisers",
            "optimiser",
            {"sigmoid": ours},
            "ImageNet 0-shot",
            PAPER,
            PAPER_INTERVAL,
            note,
            reference=next(iter(OPTIMIZERS)),
            categories=True,
        )
    ]


STUDY = Study("optimizers", "AdamW, ScalingViT-Adafactor and Lion", wanted, charts)
