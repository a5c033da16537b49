"""The search on a made-up model, whose layers lose known amounts."""

import itertools

import pytest

from modeling_siglip_ext.conversion.errors import VerificationError
from modeling_siglip_ext.conversion.export.search import Bars, Kept, give_back


LOSSES = {
    "vision_model": {"vision_model.layers.1": 1e-4, "vision_model.layers.2": 5e-4, "vision_model.head": 2e-4},
    "text_model": {"text_model.layers.1": 4e-4, "text_model.layers.2": 1e-5},
}
LAYERS = {tower: list(losses) for tower, losses in LOSSES.items()}
LEFT_OVER = 5e-5  # of what is always in 8 bits


class Model:
    def __init__(self):
        self.asked: list[frozenset[str]] = []

    def measure(self, in_float: frozenset[str]) -> Kept:
        self.asked.append(in_float)
        lost = {
            tower: LEFT_OVER + sum(loss for name, loss in losses.items() if name not in in_float)
            for tower, losses in LOSSES.items()
        }
        least = {tower: 1 - 2 * loss for tower, loss in lost.items()}
        return Kept(least, {tower: 1 - loss for tower, loss in lost.items()}, 1 - 10 * sum(lost.values()))


def fewest(bars: Bars) -> int:
    """By trying all choices."""
    names = [name for losses in LOSSES.values() for name in losses]
    for count in range(len(names)):
        if any(Model().measure(frozenset(chosen)).meets(bars) for chosen in itertools.combinations(names, count)):
            return count
    raise AssertionError("none suffices")


@pytest.mark.parametrize(
    "bars",
    [
        Bars(),
        Bars(cosine=0.99),
        Bars(cosine=0.999),
        Bars(cosine=0.9995),
        Bars(cosine=0.9997),
        Bars(agreement=0.99),
        Bars(agreement=0.9955),
        Bars(cosine=0.9985, agreement=0.998),
    ],
)
def test_the_fewest_layers_are_given_back(bars):
    in_float, kept = give_back(LAYERS, (model := Model()).measure, bars)
    assert kept.meets(bars)
    assert kept == Model().measure(in_float)
    assert len(in_float) == fewest(bars)
    assert len(model.asked) <= 1 + 5 + 1 + 3


def test_the_tower_that_lacks_gives_back_first():
    bars = Bars(cosine=1 - 2 * (LEFT_OVER + 4.2e-4))
    in_float, _ = give_back(LAYERS, Model().measure, bars)
    assert in_float == {"vision_model.layers.2"}  # the text tower keeps enough with its worst layer


def test_nothing_is_measured_twice_where_the_bars_are_met():
    model = Model()
    assert give_back(LAYERS, model.measure, Bars(cosine=0.9, agreement=0.5))[0] == frozenset()
    assert model.asked == [frozenset()]


def test_bars_out_of_reach():
    with pytest.raises(VerificationError, match=r"even with all layers but one in float: least cosine: vision_model "):
        give_back(LAYERS, Model().measure, Bars(cosine=0.99999))
    with pytest.raises(VerificationError, match=r"0\.9% equal answers|98\.\d% equal answers"):
        give_back(LAYERS, Model().measure, Bars(agreement=1.0))


def test_one_tower_has_no_answers():
    def measure(in_float: frozenset[str]) -> Kept:
        loss = 0.0 if in_float else 1e-3
        return Kept({"vision_model": 1 - loss}, {"vision_model": 1 - loss})

    in_float, kept = give_back({"vision_model": ["a", "b"]}, measure, Bars(cosine=0.9999, agreement=1.0))
    assert len(in_float) == 1
    assert kept.agreement is None
