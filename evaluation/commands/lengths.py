"""Figures of a NaFlex model by the number of patches that it sees of an image, drawn beside published ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..known_benchmarks import published
from ..results import Result, at_length


def by_length(results: Mapping[int, Result]) -> Result:
    """One result of several that differ in the number of patches; its metrics say which they are of."""
    metrics = {at_length(key, length): value for length, own in results.items() for key, value in own.metrics.items()}
    longest = results[max(results)]
    settings = {**longest.settings, "max_num_patches": list(results)}
    return replace(longest, metrics=metrics, settings=settings, predictions=None)


def draw(path: Path, results: Mapping[int, Result], figures: Mapping[str, str]) -> None:
    """The picture of some figures by length, beside those that were published of the benchmark.

    Args:
        results: by number of patches.
        figures: what to call each metric.
    """
    from ..pictures.by_length import Panel, figures_by_length

    dataset = next(iter(results.values())).dataset
    panels = [
        Panel(
            title,
            {length: float(own.metrics[key]) for length, own in results.items()},
            {} if dataset is None else published(dataset.benchmark, key),
        )
        for key, title in figures.items()
    ]
    figures_by_length(
        path, panels, title="By sequence length" if dataset is None else f"{dataset.name} by sequence length"
    )
