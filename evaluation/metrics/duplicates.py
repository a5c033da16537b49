"""Near-duplicates among any number of vectors: all pairs are compared, in blocks, and none is kept.

Pairs are compared in two steps. The product of a few leading dimensions, and of the lengths of the rest, bounds the
cosine from above (Cauchy and Schwarz); only where the bound reaches the threshold are whole vectors multiplied. The
dimensions are those of a rotation that puts most of the vectors' length in front; how many of them pay is measured on
a sample, and the bound holds for all vectors, so nothing is missed.

Rows connected by pairs are one group (single linkage). Of every group only the rows, the number of its pairs and their
least cosine are kept, so memory is that of a few blocks and some numbers a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from .connected import Components, Group


HELD = 65536  # rows in memory, compared with all rows after them
BLOCK = 4096  # rows read at a time
TILE = 1024  # rows and columns of one product: 4 MB, which stays in the cache
SAMPLE, PLACES = 4096, 16  # rows that the rotation and the number of dimensions are from, and where they lie
LEAST_WIDTH = 256  # of vectors that are compared in two steps
ROUNDING = 1e-6  # of a cosine in float32: a copy of a vector counts as one at a threshold of 1
SLACK = 1e-5  # of the bound, which is a sum in another order


class Vectors(Protocol):
    """More rows than memory may hold.

    Attributes:
        rows: how many there are.
    """

    @property
    def rows(self) -> int: ...

    def blocks(self, first: int = 0, /) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of rows (n, D) in order, from row `first` on, each with the number of its first row."""
        ...


@dataclass(frozen=True)
class InMemory:
    """`Vectors` that are a tensor (rows, D)."""

    vectors: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.vectors)

    def blocks(self, first: int = 0, /) -> Iterator[tuple[int, torch.Tensor]]:
        yield first, self.vectors[first:]


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Args:
        groups: in order of their first rows.
        pairs: in all groups.
        without_direction: rows that are zero or not finite; they match nothing.
    """

    groups: list[Group]
    pairs: int
    without_direction: list[int]


@dataclass(frozen=True)
class Bound:
    """How cosines are bounded from above.

    Args:
        rotation: (D, k), the leading dimensions; None where whole vectors are as cheap.
    """

    rotation: torch.Tensor | None

    def of(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (n, k + 1) whose products are at least the cosines of the given unit vectors (n, D)."""
        if self.rotation is None:
            return vectors
        front = vectors @ self.rotation
        rest = (vectors.square().sum(dim=1) - front.square().sum(dim=1)).clamp(min=0).sqrt()
        return torch.cat([front, rest[:, None]], dim=1)


def directions(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors in float32, zero for those that have no direction, and which have one."""
    vectors = block.float()
    valid = vectors.isfinite().all(dim=1) & (vectors != 0).any(dim=1)
    return normalize(vectors.masked_fill(~valid[:, None], 0.0), dim=1), valid


def choose_bound(sample: torch.Tensor, threshold: float) -> Bound:
    """The number of dimensions with the least work on a sample of unit vectors (n, D); see `Bound`."""
    width = sample.shape[1]
    if len(sample) < 2 * TILE or width < LEAST_WIDTH:
        return Bound(None)
    of, tried = sample[::2], sample[1::2]  # the axes fit the rows that they are from better than any others
    _, axes = torch.linalg.eigh(of.T @ of)
    axes, best = axes.flip(1), (0.8 * width, Bound(None))
    half = len(tried) // 2
    for share in (16, 12, 8, 6, 4, 2):
        kept = max(16, width // share // 16 * 16) - 1  # with the length of the rest a round number
        bound = Bound(axes[:, :kept].contiguous())
        folded = bound.of(tried)
        reached = folded[:half] @ folded[half:].T >= threshold - SLACK
        whole = reached.any(dim=1).float().mean() * reached.any(dim=0).float().mean()
        best = min(best, (kept + whole.item() * width, bound), key=lambda each: each[0])
    return best[1]


def regular(blocks: Iterator[tuple[int, torch.Tensor]]) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of `BLOCK` rows from blocks of any number of rows."""
    waiting, first, count = [], 0, 0
    for start, block in blocks:
        first = first if waiting else start
        waiting.append(block)
        count += len(block)
        if count < BLOCK:
            continue
        rows = waiting[0] if len(waiting) == 1 else torch.cat(waiting)
        whole = count - count % BLOCK
        yield from ((first + place, rows[place : place + BLOCK]) for place in range(0, whole, BLOCK))
        waiting, first, count = [rows[whole:]] if whole < count else [], first + whole, count - whole
    if waiting:
        yield first, torch.cat(waiting)


def sampled(vectors: Vectors) -> torch.Tensor:
    """Unit vectors from several places."""
    places = PLACES if vectors.rows > SAMPLE else 1
    found = []
    for place in range(places):
        wanted = SAMPLE // places
        for _, block in vectors.blocks(vectors.rows * place // places):
            unit, valid = directions(block[:wanted])
            found.append(unit[valid])
            wanted -= len(unit)
            if wanted <= 0:
                break
    return torch.cat(found)


@dataclass(frozen=True)
class Side:
    """Some rows in one of the roles of a comparison."""

    first: int
    vectors: torch.Tensor
    valid: torch.Tensor
    folded: torch.Tensor

    def tiles(self) -> Iterator["Side"]:
        for start in range(0, len(self.vectors), TILE):
            part = slice(start, start + TILE)
            yield Side(self.first + start, self.vectors[part], self.valid[part], self.folded[part])


def compare(rows: Side, columns: Side, bound: Bound, threshold: float, components: Components) -> None:
    """Take in all pairs of two tiles, those of one row with later ones."""
    most = rows.folded @ columns.folded.T
    at = (most.amax(dim=1) >= threshold - SLACK).nonzero().flatten()
    if not len(at):
        return
    across = (most[at].amax(dim=0) >= threshold - SLACK).nonzero().flatten()
    whole = bound.rotation is None
    scores = most[at][:, across] if whole else rows.vectors[at] @ columns.vectors[across].T
    matched = scores >= min(threshold, 1 - ROUNDING)
    matched &= rows.valid[at][:, None] & columns.valid[across]
    if columns.first < rows.first + len(rows.vectors):
        matched &= columns.first + across > rows.first + at[:, None]
    if matched.any():
        components.add((rows.first + at).numpy(), (columns.first + across).numpy(), scores, matched)


def pairs_of(rows: Side, columns: Side) -> int:
    """How many pairs two tiles have; of a tile with itself each one once, and each row with itself."""
    height, width = len(rows.vectors), len(columns.vectors)
    return height * width - (height * (height - 1) // 2 if rows.first == columns.first else 0)


def find_duplicates(embeds: torch.Tensor | np.ndarray | Vectors, threshold: float = 0.95) -> Duplicates:
    """Groups of vectors that are connected by pairs whose cosine is at least the threshold.

    Args:
        embeds: (rows, D), array or tensor of any float type, or blocks of them; their lengths do not matter.
        threshold: a cosine; 1 finds copies, up to the rounding of float32 (1e-6).

    Raises:
        ValueError: no cosine is as large as the threshold, or as small; or an array of another shape.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.evaluation import find_duplicates
    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    >>> find_duplicates(rows, 0.95).groups[0].rows
    [0, 2]

    ```"""
    if not -1 <= threshold <= 1:
        raise ValueError(f"the threshold is {threshold}; a cosine is between -1 and 1")
    if isinstance(embeds, (torch.Tensor, np.ndarray)):
        embeds = torch.as_tensor(embeds).detach()
        if embeds.ndim != 2:
            raise ValueError(f"embeddings are (rows, D), got shape {tuple(embeds.shape)}")
        embeds = InMemory(embeds)
    source = embeds
    count = source.rows
    components, empty = Components(count), []
    with tqdm(total=count * (count + 1) // 2, desc="comparing", unit=" pairs", unit_scale=True, disable=None) as bar:
        bound = choose_bound(sampled(source), threshold)
        for start in range(0, count, HELD):
            held: list[Side] = []
            last = min(start + HELD, count)
            for first, block in regular(source.blocks(start)):
                vectors, valid = directions(block)
                columns = Side(first, vectors, valid, bound.of(vectors))
                inside = max(0, min(len(vectors), last - first))
                if inside:
                    own = Side(first, vectors[:inside], valid[:inside], columns.folded[:inside])
                    held += own.tiles()
                    empty += (first + (~own.valid).nonzero().flatten()).tolist()
                for part in columns.tiles():
                    for rows in held:
                        if rows.first <= part.first:
                            compare(rows, part, bound, threshold, components)
                            bar.update(pairs_of(rows, part))
    groups = components.groups()
    return Duplicates(groups, sum(group.pairs for group in groups), empty)
