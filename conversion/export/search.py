"""Which layers to give back to float, so that a file in 8 bits keeps what was asked for: a search that measures.

The layers of one tower are as unlike as those of two models, and which of them lose most is seen on the user's own
images and texts alone. Every layer is given back once, by itself; they are ordered by what that brings, and the fewest
of them that suffice are found by halving.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import VerificationError


@dataclass(frozen=True)
class Bars:
    """What must be kept.

    Args:
        cosine: the least, of any image or text with its vector in float32.
        agreement: the share of images and of texts whose best match stays the same, 0 to 1.
    """

    cosine: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Kept:
    """What a choice of layers keeps.

    Args:
        least: cosine with float32, by tower.
        mean: the same, on average.
        agreement: the share of equal best matches, the smaller one of both directions; None without both towers.
    """

    least: Mapping[str, float]
    mean: Mapping[str, float]
    agreement: float | None = None

    def meets(self, bars: Bars) -> bool:
        return not self.failing(bars) and (
            bars.agreement is None or self.agreement is None or self.agreement >= bars.agreement
        )

    def failing(self, bars: Bars) -> set[str]:
        """Towers below the cosine that was asked for."""
        return {tower for tower, cosine in self.least.items() if bars.cosine is not None and cosine < bars.cosine}

    def __str__(self) -> str:
        cosines = ", ".join(f"{tower} {cosine:.6f}" for tower, cosine in self.least.items())
        same = "" if self.agreement is None else f"; {self.agreement:.1%} equal answers"
        return f"least cosine: {cosines}{same}"


Measure = Callable[[frozenset[str]], Kept]


def give_back(layers: Mapping[str, Sequence[str]], measure: Measure, bars: Bars) -> tuple[frozenset[str], Kept]:
    """The layers to leave in float, as few as suffice, and what is kept then.

    Args:
        layers: those in 8 bits, by tower.
        measure: what is kept with some layers in float.

    Raises:
        VerificationError: not even one layer can be in 8 bits.
    """
    kept = measure(frozenset())
    if kept.meets(bars):
        return frozenset(), kept
    failing = kept.failing(bars) or set(layers)
    gains = []
    for tower, names in layers.items():
        for name in names:
            gain = measure(frozenset({name})).mean[tower] - kept.mean[tower]
            # a tower that keeps enough has nothing to give until the others have given all
            gains.append((tower not in failing, -gain, name))
    order = [name for *_, name in sorted(gains)]
    best = measure(frozenset(order[:-1])) if len(order) > 1 else kept
    if not best.meets(bars):
        raise VerificationError(
            f"in 8 bits too little is kept, even with all layers but one in float: {best}; with none of them: {kept}. "
            "Ask for less, or take fp16"
        )
    short, enough = 0, len(order) - 1  # the fewest that suffice are more than `short` and at most `enough`
    while enough - short > 1:
        middle = (short + enough) // 2
        found = measure(frozenset(order[:middle]))
        if found.meets(bars):
            enough, best = middle, found
        else:
            short = middle
    return frozenset(order[:enough]), best
