"""What a study is: which runs it wants, and what it shows of them beside the paper's figures."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .experiment import Settings, train_and_evaluate
from .runs import Runs


# Settings are chosen with seeds of their own, which are not among those that are reported.
SWEEP_SEEDS = (1000, 1001)
# Where a sweep begins; it goes on, by factors of two, until the best value lies between others.
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
TEMPERATURES = (5.0, 10.0, 20.0)
BASE_BATCH = 32


@dataclass(frozen=True)
class Experiment:
    """What the runs of a study are.

    Args:
        settings: the dataclass of a run's settings, among them `seed`.
        run: makes a run of settings, on a device, and gives its figures.
        file: name of the file that finished runs are kept in.
        headline: of the tables, what the figures are.
        accelerated: whether a run can be made on an accelerator.
        needs: of a run, arguments of `prepare`.
        prepare: what runs need before they start, done once for all that need the same.
    """

    settings: type
    run: Callable[[Any, str], dict[str, float]]
    file: str
    headline: str
    accelerated: bool = False
    needs: Callable[[Any], Sequence[tuple]] = lambda settings: ()
    prepare: Callable[..., None] | None = None


EMOJI = Experiment(
    Settings,
    train_and_evaluate,
    "runs.jsonl",
    "small towers from scratch on the bundled emoji. Held-out recall@1 in percent, mean of both ways over 502 pairs "
    "(chance 0.2), ± 95 % interval over seeds.",
)


@dataclass
class Chart:
    """Lines over a common axis.

    `ours` has, for each line and place on the axis, one value a seed, in percent; `paper` the published ones and
    `paper_interval` what they are given ± of, of another model, data and metric: only their order and shape can be
    compared. With `reference`, a place on the axis, the table gives each line's differences from it; else, where it
    has two lines, what these differ by, if they are `comparable`. `note` says what else is to know.
    """

    title: str
    x_label: str
    ours: dict[str, dict[str, list[float]]]
    paper_title: str = ""
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    paper_interval: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""
    reference: str = ""
    comparable: bool = True  # the lines are of one figure
    categories: bool = False  # the places have no order: no line is drawn between them
    y_label: str = "held-out recall@1, %"
    digits: int = 1  # behind the point, in tables


def seed_by_seed(points: Iterable[Any], seeds: int) -> list[Any]:
    """The runs of all points that are known, the first seed of each before the second of any: an unfinished study has
    something of everything."""
    known = list(dict.fromkeys(point for point in points if point is not None))
    return [replace(point, seed=seed) for seed in range(seeds) for point in known]


def sweep(
    runs: Runs, base: Settings, field_name: str, values: Iterable[float]
) -> tuple[list[Settings], Settings | None]:
    """The runs that choose the value of a field, and the choice, once it is known.

    The best value is that with the highest reciprocal rank on the validation part, in the mean of `SWEEP_SEEDS`. Where
    it is the smallest or the largest that was tried, half of it or its double is tried, too.
    """
    values = sorted(values)
    while True:
        points = [replace(base, **{field_name: value}) for value in values]
        wanted = [replace(point, seed=seed) for point in points for seed in SWEEP_SEEDS]
        if not all(one in runs for one in wanted):
            return wanted, None
        scores = [validation_score(runs, point) for point in points]
        best = scores.index(max(scores))
        if best == 0:
            values.insert(0, values[0] / 2)
        elif best == len(values) - 1:
            values.append(values[-1] * 2)
        else:
            return wanted, points[best]


def validation_score(runs: Runs, point: Settings) -> float:
    return statistics.fmean(runs.values([replace(point, seed=seed) for seed in SWEEP_SEEDS], "validation_mrr"))


def tuned(runs: Runs, base: Settings) -> tuple[list[Settings], Settings | None]:
    """The runs that choose learning rate and temperature, and the choice.

    First the learning rate at the temperature of `base`, the paper's, then the temperature at that rate.
    """
    wanted, chosen = sweep(runs, base, "learning_rate", LEARNING_RATES)
    if chosen is None:
        return wanted, None
    more, chosen = sweep(runs, chosen, "temperature", TEMPERATURES)
    return wanted + more, chosen


def recall(runs: Runs, settings: Settings, seeds: int) -> list[float]:
    """Held-out recall@1, the mean of both ways, in percent, of each finished seed."""
    seeded = [replace(settings, seed=seed) for seed in range(seeds)]
    one, other = (runs.values(seeded, f"held_out_{way}_recall@1") for way in ("image_to_text", "text_to_image"))
    return [50 * (a + b) for a, b in zip(one, other)]


class Plan:
    """The runs that a study asks for while it is laid out, and what those of them give that are finished."""

    def __init__(self, runs: Runs, seeds: int):
        self.runs, self.seeds = runs, seeds
        self.sweeps: list[Any] = []
        self.points: list[Any] = []

    def chosen(self, found: tuple[list[Settings], Settings | None]) -> Settings | None:
        """Ask for the runs of a sweep; its choice, once it is known."""
        self.sweeps += found[0]
        return found[1]

    def tuned(self, loss: str = "sigmoid", batch_size: int = BASE_BATCH) -> Settings | None:
        """A loss at a batch size, with the learning rate and the temperature that are chosen for it."""
        return self.chosen(tuned(self.runs, Settings(loss=loss, batch_size=batch_size)))

    def recalls(self, points: Mapping[str, Mapping[str, Settings | None]]) -> dict[str, dict[str, list[float]]]:
        """Ask for points, by line and place, with every seed; the lines of a chart, of the points that are known."""
        self.points += [point for line in points.values() for point in line.values()]
        return {
            label: {place: recall(self.runs, point, self.seeds) for place, point in line.items() if point is not None}
            for label, line in points.items()
        }

    def figures(self, point: Any, figure: str, scale: float = 100.0) -> list[float]:
        """Ask for a point with every seed; one figure of those that are finished, in percent unless said otherwise."""
        self.points.append(point)
        seeded = [] if point is None else [replace(point, seed=seed) for seed in range(self.seeds)]
        return [scale * value for value in self.runs.values(seeded, figure)]

    def wanted(self) -> list[Any]:
        return self.sweeps + seed_by_seed(self.points, self.seeds)


@dataclass(frozen=True)
class Study:
    """`wanted` gives every run that the study needs as far as it is known from those finished: a sweep first, then the
    seeds with what the sweep chose. The study is complete when all of them are finished."""

    name: str
    summary: str
    lay_out: Callable[[Plan], list[Chart]]
    experiment: Experiment = EMOJI

    def wanted(self, runs: Runs, seeds: int) -> list[Any]:
        plan = Plan(runs, seeds)
        self.lay_out(plan)
        return plan.wanted()

    def charts(self, runs: Runs, seeds: int) -> list[Chart]:
        return self.lay_out(Plan(runs, seeds))
