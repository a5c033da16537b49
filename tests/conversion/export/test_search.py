"""The search on a made-up tower, whose layers lose known amounts."""

import itertools
from dataclasses import fields

import pytest
import torch

from modeling_siglip_ext.conversion.errors import VerificationError
from modeling_siglip_ext.conversion.export.parity import Answers, Judgement, Parity
from modeling_siglip_ext.conversion.export.search import Bars, give_back


LOSSES = {"layers.1": 1e-4, "layers.2": 5e-4, "head": 2e-4, "layers.3": 4e-4, "layers.4": 1e-5}
LEFT_OVER = 5e-5  # of what is always in 8 bits


def judgement(lost: float, *, answers: bool = True) -> Judgement:
    values = {field.name: 1.0 for field in fields(Parity)}
    values |= {"inputs": 64, "cosine_least": 1 - 2 * lost, "cosine_mean": 1 - lost}
    return Judgement(Parity(**values), Answers(1 - 10 * lost, 1 - 5 * lost) if answers else None, torch.zeros(0))


class Tower:
    def __init__(self, **settings):
        self.asked: list[frozenset[str]] = []
        self.settings = settings

    def measure(self, in_float: frozenset[str]) -> Judgement:
        self.asked.append(in_float)
        lost = LEFT_OVER + sum(loss for layer, loss in LOSSES.items() if layer not in in_float)
        return judgement(lost, **self.settings)


def fewest(bars: Bars) -> int:
    """By trying all choices."""
    for count in range(len(LOSSES)):
        if any(bars.met_by(Tower().measure(frozenset(some))) for some in itertools.combinations(LOSSES, count)):
            return count
    raise AssertionError("none suffices")


@pytest.mark.parametrize(
    "bars",
    [
        Bars(),
        Bars(min_cosine=0.99),
        Bars(min_cosine=0.998),
        Bars(min_cosine=0.9988),
        Bars(min_cosine=0.9995),
        Bars(min_cosine=0.99986),
        Bars(min_agreement=0.99),
        Bars(min_agreement=0.9955),
        Bars(min_cosine=0.9985, min_agreement=0.998),
    ],
)
def test_the_fewest_layers_are_given_back(bars):
    in_float = give_back(list(LOSSES), (tower := Tower()).measure, bars)
    assert bars.met_by(Tower().measure(in_float))
    assert len(in_float) == fewest(bars)
    assert len(tower.asked) <= 1 + len(LOSSES) + 1 + 2


def test_the_worst_layers_are_given_back():
    assert give_back(list(LOSSES), Tower().measure, Bars(min_cosine=0.9983)) == {"layers.2"}
    assert give_back(list(LOSSES), Tower().measure, Bars(min_cosine=0.999)) == {"layers.2", "layers.3"}


def test_nothing_more_is_measured_where_the_bars_are_met():
    tower = Tower()
    assert give_back(list(LOSSES), tower.measure, Bars(0.9, 0.5)) == frozenset()
    assert tower.asked == [frozenset()]


@pytest.mark.parametrize("bars", [Bars(min_cosine=0.99999), Bars(min_agreement=1.0)])
def test_bars_out_of_reach(bars):
    with pytest.raises(VerificationError, match=r"least cosine 0\.997480 and 98\.7% equal answers; with all"):
        give_back(list(LOSSES), Tower().measure, bars)
    with pytest.raises(VerificationError, match="8 bits keep too little"):
        give_back(["layers.1"], Tower().measure, bars)


def test_one_tower_has_no_answers():
    tower = Tower(answers=False)
    assert give_back(list(LOSSES), tower.measure, Bars(min_agreement=1.0)) == frozenset()
