"""What a study is: which runs it wants, and what it shows of them beside the paper's figures."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .experiment import Settings
from .runs import Runs


# Settings are chosen with a seed of their own, which is not among those that are reported.
SWEEP_SEED = 1000
# Chosen among these for each loss, batch size and optimizer, on the validation part.
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
TEMPERATURES = (10.0, 20.0)
BASE_BATCH = 32


DRAWN_ONLY = "The paper draws its values and prints none."


@dataclass
class Figure:
    """Lines over a common axis.

    `ours` has, for each line and place on the axis, one value a seed, in percent; `paper` the published ones, of
    another model, data and metric: only their order and shape can be compared. `note` says what else is to know.
    """

    title: str
    x_label: str
    ours: dict[str, dict[str, list[float]]]
    paper_title: str = ""
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Study:
    """`wanted` gives every run that the study needs as far as it is known from those finished: a sweep first, then the
    seeds with what the sweep chose. The study is complete when all of them are finished."""

    name: str
    summary: str
    wanted: Callable[[Runs, int], list[Settings]]
    figures: Callable[[Runs, int], list[Figure]]


def seeded(settings: Settings, seeds: int) -> list[Settings]:
    return [replace(settings, seed=seed) for seed in range(seeds)]


def sweep(base: Settings, **grid: tuple) -> list[Settings]:
    """Every combination of the values given for some fields, with the seed of sweeps."""
    candidates = [replace(base, seed=SWEEP_SEED)]
    for name, values in grid.items():
        candidates = [replace(one, **{name: value}) for one in candidates for value in values]
    return candidates


def base_sweep(runs: Runs, loss: str, batch_size: int) -> tuple[list[Settings], Settings | None]:
    """The runs that choose learning rate and temperature of a loss at a batch size, and the choice once all are there.

    First the learning rate at the paper's temperature, then the other temperatures at that rate.
    """
    base = Settings(loss=loss, batch_size=batch_size, temperature=TEMPERATURES[0])
    candidates = sweep(base, learning_rate=LEARNING_RATES)
    chosen = runs.best(candidates)
    if chosen is None:
        return candidates, None
    candidates += sweep(chosen, temperature=TEMPERATURES[1:])
    return candidates, runs.best(candidates)


def recall(runs: Runs, settings: Settings, seeds: int) -> list[float]:
    """Held-out recall@1, the mean of both ways, in percent, of each finished seed."""
    one, other = (
        runs.values(seeded(settings, seeds), f"held_out_{way}_recall@1") for way in ("image_to_text", "text_to_image")
    )
    return [50 * (a + b) for a, b in zip(one, other)]
