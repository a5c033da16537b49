"""Which examples of a super-batch to train on: joint selection by the sigmoid loss of a learner and of a reference.

Of each pair of an image i and a text j the score is a difference of losses, S_ij = L_ij(learner) - L_ij(reference)
with L_ij = softplus(-z_ij (t x_i·y_j + b)): "learnability", large where the learner can still learn what the reference
knows. A batch's score is the sum over all its pairs, so that an example counts by those it would share the batch with.
The batch is drawn in chunks, each conditional on what was drawn before (JEST, algorithm 1).

Learnability cleans data only while the learner is far weaker than the reference: as soon as the two are equal, every
pair scores 0, clean or wrong, and the choice is a random one. "easy_reference" does not depend on the learner.

Sources: Evans et al., arXiv 2406.17711 (JEST); Udandarao et al., arXiv 2411.18674 (ACID); SigLIP 2, arXiv 2502.14786.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import torch
from torch import nn

from modeling_siglip_ext.packing import on_device


LEARNABILITY, EASY_REFERENCE, HARD_LEARNER = "learnability", "easy_reference", "hard_learner"
SIGNS = {LEARNABILITY: (1, -1), EASY_REFERENCE: (0, -1), HARD_LEARNER: (1, 0)}
"""Of the learner's and of the reference's losses in a score."""
DIAGONAL, UNIFORM = "diagonal", "uniform"
TILE = 2**24
"""Pairs whose losses are held at a time."""


@dataclass(frozen=True)
class CurationSettings:
    """
    Args:
        ratio: share of a super-batch that is not trained on; 0.5 in SigLIP 2, 0.8 in ACID.
        chunks: in how many parts a batch is drawn; JEST's 16.
        score: learnability, easy_reference (minus the reference's loss) or hard_learner (the learner's loss).
        first_chunk: drawn by the scores of its pairs alone (diagonal) or at random (uniform). The papers do not say;
            by the diagonal more of the first chunk is clean.
        temperature: of the draw: chances are proportional to exp(score / temperature); at 0 the best are taken.

    Raises:
        ValueError: a value out of range.
    """

    ratio: float = 0.5
    chunks: int = 16
    score: str = LEARNABILITY
    first_chunk: str = DIAGONAL
    temperature: float = 1.0

    def __post_init__(self):
        for name, known in (("score", tuple(SIGNS)), ("first_chunk", (DIAGONAL, UNIFORM))):
            if getattr(self, name) not in known:
                raise ValueError(f"curation.{name}={getattr(self, name)!r}: choose from {', '.join(known)}")
        if not isinstance(self.ratio, Real) or not 0 < self.ratio < 1:
            raise ValueError(f"curation.ratio must be above 0 and below 1, got {self.ratio!r}")
        if not isinstance(self.chunks, int) or isinstance(self.chunks, bool) or self.chunks < 1:
            raise ValueError(f"curation.chunks must be a whole number, at least 1, got {self.chunks!r}")
        if not isinstance(self.temperature, Real) or not 0 <= self.temperature < float("inf"):
            raise ValueError(f"curation.temperature must be a number that is not negative, got {self.temperature!r}")

    @property
    def reads_reference(self) -> bool:
        return SIGNS[self.score][1] != 0

    def super_batch(self, batch: int) -> int:
        """Examples that are drawn for a batch of so many.

        Raises:
            ValueError: there is no whole number of them.
        """
        drawn = round(batch / (1 - self.ratio))
        if abs(drawn * (1 - self.ratio) - batch) > 1e-6 * batch:
            raise ValueError(
                f"curation.ratio={self.ratio} of what number leaves {batch}? Choose a ratio such that "
                "per_device_train_batch_size / (1 - ratio) is whole, as 0.5, 0.75 or 0.8"
            )
        return drawn


@dataclass(frozen=True)
class Judged:
    """What a model makes of a super-batch.

    Args:
        images, texts: (B, D), normalized.
        scale, bias: scalars, the model's `logit_scale` (a logarithm) and `logit_bias`.
    """

    images: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def losses(self, cosines: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
        """Of pairs with these cosines, which belong together where `positive`."""
        logits = cosines * self.scale.exp() + self.bias
        return nn.functional.softplus(torch.where(positive, -logits, logits))


class PairScores:
    """The scores S_ij of all pairs of a super-batch, of which never more than a tile is computed at a time.

    Args:
        judged: what the models of the score make of the super-batch, each with the sign of its losses.
        pair_ids: (B,) int64; images and texts with equal ids belong together. None: each only with its own.
    """

    def __init__(self, judged: Sequence[tuple[int, Judged]], pair_ids: torch.Tensor | None = None):
        self.judged = judged
        images = judged[0][1].images
        self.ids = torch.arange(len(images), device=images.device) if pair_ids is None else pair_ids

    def __len__(self) -> int:
        return len(self.ids)

    def own(self) -> torch.Tensor:
        """S_ii, (B,)."""
        every = torch.ones_like(self.ids, dtype=torch.bool)
        losses = [sign * one.losses((one.images * one.texts).sum(1), every) for sign, one in self.judged]
        return torch.stack(losses).sum(0)

    def beside(self, members: torch.Tensor) -> torch.Tensor:
        """Σ_k (S_ik + S_ki) over the members k, (B,), for every i: O(B · members · D)."""
        size = max(1, TILE // max(1, len(members)))
        return torch.cat([self._tile(slice(start, start + size), members) for start in range(0, len(self), size)])

    def _tile(self, rows: slice, members: torch.Tensor) -> torch.Tensor:
        positive = self.ids[rows, None] == self.ids[members]
        total = torch.zeros(())
        for sign, one in self.judged:
            both = (one.images[rows], one.texts[members]), (one.texts[rows], one.images[members])
            total = total + sign * sum(one.losses(some @ others.T, positive).sum(1) for some, others in both)
        return total


def select(scores: PairScores, count: int, settings: CurationSettings, generator: torch.Generator) -> torch.Tensor:
    """Draw examples jointly.

    In each chunk an example i that is not among those chosen before, A, has the logit S_ii + Σ_{k∈A} (S_ik + S_ki),
    what it would add to the batch's score; examples of one chunk are drawn without replacement. The sums over A run
    on with the last chunk's columns, so that all is O(B · count · D).

    Args:
        scores: of B examples.
        count: how many to choose, at most B.
        settings: `ratio` is not read.
        generator: of the CPU; the choice follows from its state.

    Returns:
        (count,) int64 in the order of the draw, on the device of the scores, which nobody waits for.
    """
    if not 0 < count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} examples cannot be chosen")
    device = scores.ids.device
    if device.type == "mps":  # without float64
        device = torch.device("cpu")
    logits = scores.own().to(device).double()
    edges = [count * number // settings.chunks for number in range(settings.chunks + 1)]
    sizes = [end - start for start, end in pairwise(edges) if end > start]
    chosen = torch.empty(0, dtype=torch.int64, device=device)
    for number, size in enumerate(sizes):
        by_chance = number == 0 and settings.first_chunk == UNIFORM
        open_to = (torch.zeros_like(logits) if by_chance else logits).index_fill(0, chosen, -torch.inf)
        members = draw(open_to, size, 1.0 if by_chance else settings.temperature, generator)
        chosen = torch.cat([chosen, members])
        if number + 1 < len(sizes):
            logits += scores.beside(members.to(scores.ids.device)).to(device).double()
    return chosen


def draw(logits: torch.Tensor, count: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """(count,) indices without replacement, each next one with chances proportional to exp(logit / temperature).

    Gumbel noise on the logits and the largest of them: Kool et al., arXiv 1903.06059.
    """
    gumbel = -torch.empty_like(logits, device="cpu").exponential_(generator=generator).log()
    gumbel = on_device(gumbel, logits.device)
    return (logits + temperature * gumbel).topk(count).indices
