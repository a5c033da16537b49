"""Sigmoid against softmax over the batch size (arXiv 2303.15343, 3 billion examples seen)."""

from .experiment import Settings
from .runs import Runs
from .study import Chart, Study, choice, recall, seed_by_seed, tuned_loss


LOSSES = ("sigmoid", "softmax")
BATCH_SIZES = (32, 64, 256)
PAPER = {
    "sigmoid": {"512": 51.5, "1k": 57.3, "2k": 62.1, "4k": 65.3, "8k": 68.6, "32k": 69.9, "98k": 69.5},
    "softmax": {"512": 47.7, "1k": 53.2, "2k": 59.3, "4k": 63.8, "8k": 66.6, "32k": 69.9, "98k": 69.7},
}


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    found = [tuned_loss(runs, loss, batch_size) for batch_size in BATCH_SIZES for loss in LOSSES]
    sweeps = [one for candidates, _ in found for one in candidates]
    return sweeps + seed_by_seed((chosen for _, chosen in found), seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
    choices = []
    for loss in LOSSES:
        for batch_size in BATCH_SIZES:
            _, chosen = tuned_loss(runs, loss, batch_size)
            if chosen is not None:
                ours[loss][str(batch_size)] = recall(runs, chosen, seeds)
                choices.append(f"{loss} at {batch_size} {choice(chosen)}")
    note = f"Chosen on validation, learning rate and initial temperature: {', '.join(choices)}."
    title = "ImageNet 0-shot, B/16, 3B examples seen"
    return [Chart("Batch size", "batch size", ours, title, PAPER, note=note if choices else "")]


STUDY = Study("batch-size", "sigmoid and softmax over the batch size", wanted, charts)
