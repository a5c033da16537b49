"""What negative pairs contribute: a share of them, chosen in three ways (arXiv 2303.15343, section 4.7)."""

from dataclasses import replace

from modeling_siglip_ext.losses.negatives import CHOICES

from .experiment import Settings
from .runs import Runs
from .study import DRAWN_ONLY, Figure, Study, base_sweep, recall, seeded


# More negatives to take away from than at the base batch size.
BATCH = 256
SHARES = (1.0, 0.25, 0.0625, 0.015625)


def settings_of(runs: Runs, choice: str, share: float) -> Settings | None:
    _, chosen = base_sweep(runs, "sigmoid", BATCH)
    if chosen is None or share == 1:
        return chosen
    return replace(chosen, negatives=choice, negatives_share=share)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    found = [settings_of(runs, choice, share) for share in SHARES for choice in CHOICES]
    known = dict.fromkeys(one for one in found if one is not None)
    return base_sweep(runs, "sigmoid", BATCH)[0] + [one for chosen in known for one in seeded(chosen, seeds)]


def figures(runs: Runs, seeds: int) -> list[Figure]:
    ours: dict[str, dict[str, list[float]]] = {choice: {} for choice in CHOICES}
    for choice in CHOICES:
        for share in SHARES:
            one = settings_of(runs, choice, share)
            if one is not None:
                ours[choice][f"1:{round(share * (BATCH - 1))}"] = recall(runs, one, seeds)
    return [Figure("Negatives to a positive", "ratio", ours, note=DRAWN_ONLY)]


STUDY = Study("negatives", "a share of the negative pairs, chosen in three ways", wanted, figures)
