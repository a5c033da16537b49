"""Five kinds of label noise (arXiv 2303.15343, where the values are only drawn)."""

from dataclasses import replace

from .experiment import Settings
from .noise import KINDS
from .runs import Runs
from .study import BASE_BATCH, DRAWN_ONLY, Figure, Study, base_sweep, recall


LOSSES = ("sigmoid", "softmax")
SHARES = (0.0, 0.4)


def settings_of(runs: Runs, loss: str, kind: str, share: float) -> Settings | None:
    _, chosen = base_sweep(runs, loss, BASE_BATCH)
    if chosen is None or share == 0:
        return chosen
    return replace(chosen, noise=kind, noise_share=share)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    settings = [one for loss in LOSSES for one in base_sweep(runs, loss, BASE_BATCH)[0]]
    # seed by seed, so that an unfinished study has a seed of everything
    found = [settings_of(runs, loss, kind, share) for share in SHARES for kind in KINDS for loss in LOSSES]
    known = dict.fromkeys(one for one in found if one is not None)
    return settings + [replace(one, seed=seed) for seed in range(seeds) for one in known]


def figures(runs: Runs, seeds: int) -> list[Figure]:
    panels = []
    for kind in KINDS:
        ours: dict[str, dict[str, list[float]]] = {loss: {} for loss in LOSSES}
        for loss in LOSSES:
            for share in SHARES:
                one = settings_of(runs, loss, kind, share)
                if one is not None:
                    ours[loss][f"{share:.1f}"] = recall(runs, one, seeds)
        panels.append(Figure(f"Noise: {kind.replace('_', ', ')}", "probability", ours, note=DRAWN_ONLY))
    return panels


STUDY = Study("label-noise", "five kinds of label noise", wanted, figures)
