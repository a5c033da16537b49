"""What negative pairs contribute: a share of them, chosen in three ways (arXiv 2303.15343, section 4.7)."""

from dataclasses import replace

from .experiment import Settings
from .runs import Runs
from .some_negatives import CHOICES
from .study import DRAWN_ONLY, LEARNING_RATES, Chart, Study, recall, seed_by_seed, sweep


# More negatives to take away from than at the base batch size, and examples for as many steps as a batch of 64 has.
BASE = Settings(batch_size=256, examples=48_000)
NEGATIVES = BASE.batch_size - 1
KEPT = (NEGATIVES, 16, 1)


def tuned(runs: Runs) -> tuple[list[Settings], Settings | None]:
    """The learning rate with all negatives; the temperature is the paper's, as these runs are long."""
    return sweep(runs, BASE, "learning_rate", LEARNING_RATES)


def settings_of(runs: Runs, way: str, kept: int) -> Settings | None:
    _, chosen = tuned(runs)
    if chosen is None or kept == NEGATIVES:
        return chosen
    return replace(chosen, negatives=way, negatives_share=kept / NEGATIVES)


def wanted(runs: Runs, seeds: int) -> list[Settings]:
    points = [settings_of(runs, way, kept) for kept in KEPT for way in CHOICES]
    return tuned(runs)[0] + seed_by_seed(points, seeds)


def charts(runs: Runs, seeds: int) -> list[Chart]:
    ours: dict[str, dict[str, list[float]]] = {way: {} for way in CHOICES}
    for way in CHOICES:
        for kept in KEPT:
            one = settings_of(runs, way, kept)
            if one is not None:
                ours[way][f"1:{kept}"] = recall(runs, one, seeds)
    note = f"Batch {BASE.batch_size}, {BASE.examples:,} examples seen. {DRAWN_ONLY}"
    _, chosen = tuned(runs)
    if chosen is not None:
        note += f" Learning rate, chosen with all negatives: {chosen.learning_rate:g}."
    return [Chart("Negatives to a positive", "ratio", ours, note=note, reference=f"1:{NEGATIVES}")]


STUDY = Study("negatives", "a share of the negative pairs, chosen in three ways", wanted, charts)
