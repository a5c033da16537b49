"""Five kinds of label noise (arXiv 2303.15343, where the values are only drawn)."""

from dataclasses import replace

from .experiment import Settings
from .noise import KINDS
from .runs import Runs
from .study import DRAWN_ONLY, Chart, Study, recall, seed_by_seed, tuned_loss


LOSSES = ("sigmoid", "softmax")
SHARES = (0.0, 0.2, 0.4)


def settings_of(runs: Runs, loss: str, kind: str, share: float) -> Settings | None:
    _, chosen = tuned_loss(runs, loss)
    if chosen is None or share == 0:
        return chosen
    return replace(chosen, noise=kind, noise_share=share)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    sweeps = [one for loss in LOSSES for one in tuned_loss(runs, loss)[0]]
    points = [settings_of(runs, loss, kind, share) for share in SHARES for kind in KINDS for loss in LOSSES]
    return sweeps + seed_by_seed(points, seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    panels = []
    for kind in KINDS:
        ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
        for loss in LOSSES:
            for share in SHARES:
                one = settings_of(runs, loss, kind, share)
                if one is not None:
                    ours[loss][f"{share:.1f}"] = recall(runs, one, seeds)
        panels.append(Chart(f"Noise: {kind.replace('_', ', ')}", "probability", ours, note=DRAWN_ONLY))
    return panels


STUDY = Study("label-noise", "five kinds of label noise", wanted, charts)
