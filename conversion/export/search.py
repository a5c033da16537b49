"""Which layers to give back to float, so that a file in 8 bits keeps what was asked for: a search that measures.

Which layers lose most differs from model to model, and is seen on the user's own images and texts alone. Every layer
is given back once, by itself; they are ordered by what that brings, and the fewest of them that suffice are found by
halving.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from ..errors import VerificationError
from .parity import Judgement


@dataclass(frozen=True)
class Bars:
    """What must be kept.

    Args:
        min_cosine: the least between a vector and its float32 one.
        min_agreement: the least share of equal nearest neighbours, both of images and of texts.
    """

    min_cosine: float | None = None
    min_agreement: float | None = None

    def met_by(self, found: Judgement) -> bool:
        near = self.min_cosine is None or found.parity.cosine_least >= self.min_cosine
        same = self.min_agreement is None or found.answers is None or found.answers.least >= self.min_agreement
        return near and same


Measure = Callable[[frozenset[str]], Judgement]


def give_back(layers: Sequence[str], measure: Measure, bars: Bars) -> frozenset[str]:
    """The layers to leave in float, as few as suffice.

    Args:
        layers: those in 8 bits.
        measure: what is kept with some of them in float.

    Raises:
        VerificationError: not even one layer can be in 8 bits.
    """
    first = measure(frozenset())
    if bars.met_by(first):
        return frozenset()

    def alone(layer: str) -> float:
        return measure(frozenset({layer})).parity.cosine_mean

    gains = {layer: alone(layer) for layer in tqdm(layers, desc="measuring layers", leave=False)}
    order = sorted(layers, key=lambda layer: -gains[layer])
    least = measure(frozenset(order[:-1])) if len(order) > 1 else first
    if not bars.met_by(least):
        raise VerificationError(
            f"8 bits keep too little: {summary(first)}; with all layers but one in float {summary(least)}. Ask for "
            "less, or take fp16"
        )
    short, enough = 0, len(order) - 1  # the fewest that suffice are more than `short` and at most `enough`
    while enough - short > 1:
        middle = (short + enough) // 2
        if bars.met_by(measure(frozenset(order[:middle]))):
            enough = middle
        else:
            short = middle
    return frozenset(order[:enough])


def summary(found: Judgement) -> str:
    same = "" if found.answers is None else f" and {found.answers.least:.1%} equal answers"
    return f"least cosine {found.parity.cosine_least:.6f}{same}"
