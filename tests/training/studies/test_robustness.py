"""What a loss forgives: the mean of the grid against its best point, seed by seed."""

import numpy as np
import pytest

from modeling_siglip_ext.training.studies.paper import DECAYS, LOSSES, RATES, forgiven
from modeling_siglip_ext.training.studies.study import Chart


def panels(values: np.ndarray) -> list[Chart]:
    """Of values by loss, decay, rate and seed."""
    return [
        Chart(
            "",
            "",
            {
                loss: {f"{rate:g}": list(map(float, values[i, j, k])) for k, rate in enumerate(RATES)}
                for i, loss in enumerate(LOSSES)
            },
        )
        for j in range(len(DECAYS))
    ]


def test_the_mean_of_the_grid():
    values = np.random.default_rng(0).uniform(1, 20, (len(LOSSES), len(DECAYS), len(RATES), 3))
    figure = forgiven(panels(values))
    for loss, grid in zip(LOSSES, values.reshape(len(LOSSES), -1, 3)):
        best = grid[grid.mean(1).argmax()]
        assert figure.ours[loss]["grid"] == pytest.approx(100 * grid.mean(0) / best)


def test_an_unfinished_grid_has_none():
    unfinished = panels(np.ones((len(LOSSES), len(DECAYS), len(RATES), 3)))
    unfinished[0].ours["sigmoid"][f"{RATES[0]:g}"] = [1.0]
    assert forgiven(unfinished).ours["sigmoid"] == {}
    assert forgiven(unfinished).ours["softmax"]["grid"] == [100.0] * 3
