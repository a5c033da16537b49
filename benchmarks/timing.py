"""Ratios of two timings taken in turn, so that a machine whose speed drifts drifts for both."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import bootstrap


@dataclass(frozen=True)
class Ratio:
    """Time of A as a multiple of B's over alternating pairs: the median, with its 95 % interval (bootstrap).

    The seconds are the medians of each side. A single pair has no interval. Of batches that differ (`alternate_over`)
    they are the sums.
    """

    median: float
    low: float | None
    high: float | None
    seconds_a: float
    seconds_b: float

    def __str__(self) -> str:
        return with_interval(self.median, self.low, self.high)

    def record(self) -> dict[str, float | None]:
        """What is kept in a JSON file."""
        return {
            "ratio": self.median,
            "low": self.low,
            "high": self.high,
            "seconds": self.seconds_a,
            "other_seconds": self.seconds_b,
        }


def with_interval(median: float, low: float | None, high: float | None, digits: int = 3) -> str:
    interval = "(one pair)" if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"
    return f"{median:.{digits}f} {interval}"


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def alternate(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int = 20,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time a and b in turn, `rounds` pairs; which goes first changes with every pair.

    Args:
        clock: `time.process_time` for the CPU time of all threads, which says more where others use the machine.
    """
    for _ in range(warmup):
        a(), b()
    pairs = []
    for index in range(rounds):
        if index % 2:
            time_b, time_a = seconds(b, clock), seconds(a, clock)
        else:
            time_a, time_b = seconds(a, clock), seconds(b, clock)
        pairs.append((time_a, time_b))
    times = np.array(pairs)
    ratios = times[:, 0] / times[:, 1]
    low = high = None
    if rounds > 1:
        interval = bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Ratio(float(np.median(ratios)), low, high, *map(float, np.median(times, axis=0)))


def alternate_over(a: Callable[[object], object], b: Callable[[object], object], batches: Sequence[object]) -> Ratio:
    """Time a and b in turn on each batch, once: the ratio of the sums, with its interval over the batches."""
    pairs = [(b, a) if index % 2 else (a, b) for index in range(len(batches))]
    taken = [[seconds(partial(run, batch)) for run in pair] for pair, batch in zip(pairs, batches)]
    times = np.array([found[::-1] if index % 2 else found for index, found in enumerate(taken)]).T

    def ratio_of_sums(of_a: np.ndarray, of_b: np.ndarray, axis: int = -1) -> np.ndarray:
        return of_a.sum(axis) / of_b.sum(axis)

    interval = bootstrap(times, ratio_of_sums, paired=True, rng=0, method="percentile").confidence_interval
    sums = map(float, times.sum(axis=1))
    return Ratio(float(ratio_of_sums(*times)), float(interval.low), float(interval.high), *sums)
