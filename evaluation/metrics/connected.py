"""Rows that are connected by pairs, pairs that come in blocks of scores and are not kept."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


EDGES = 1 << 20  # connections that wait to be merged


@dataclass(frozen=True)
class Group:
    """Rows connected by pairs.

    Args:
        rows: in order.
        pairs: how many of their pairs reach the threshold.
        least_cosine: of these pairs.
    """

    rows: list[int]
    pairs: int
    least_cosine: float


class Components:
    """Connected rows; connections are merged when there are many of them.

    Attributes:
        label: of each row, equal for rows that are connected.
        pairs, least: of each row with those that it was compared with as the first of two.
    """

    def __init__(self, rows: int):
        self.label = np.arange(rows)
        self.pairs = np.zeros(rows, np.int64)
        self.least = np.full(rows, np.inf, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, rows: np.ndarray, columns: np.ndarray, scores: torch.Tensor, matched: torch.Tensor) -> None:
        """Take in a block of scores.

        Args:
            rows, columns: numbers of the vectors, (r,) and (c,).
            scores: (r, c).
            matched: (r, c), where a pair counts.
        """
        self.pairs[rows] += matched.sum(dim=1).numpy()
        least = scores.masked_fill(~matched, torch.inf).amin(dim=1).numpy()
        self.least[rows] = np.minimum(self.least[rows], least)
        first, second = connections(matched, rows, columns)
        self._waiting.append((first, second))
        self._count += len(first)
        if self._count > EDGES:
            self.merge()

    def merge(self) -> None:
        if self._waiting:
            first, second = (self.label[np.concatenate(ends)] for ends in zip(*self._waiting))
            shape = (len(self.label),) * 2
            _, label = connected_components(coo_matrix((np.ones(len(first), bool), (first, second)), shape), False)
            self.label = label[self.label]
        self._waiting, self._count = [], 0

    def groups(self) -> list[Group]:
        """Rows with a pair, by group."""
        self.merge()
        connected = np.flatnonzero(np.bincount(self.label)[self.label] > 1)
        order = connected[np.argsort(self.label[connected], kind="stable")]
        parts = np.split(order, np.flatnonzero(np.diff(self.label[order])) + 1) if len(order) else []
        found = [
            Group(rows.tolist(), int(self.pairs[rows].sum()), min(1.0, float(self.least[rows].min())))
            for rows in parts
        ]
        return sorted(found, key=lambda group: group.rows[0])


def connections(matched: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that connect the same rows as all matched pairs do, no more of them than rows and columns.

    Args:
        matched: (r, c).
        rows, columns: numbers of the vectors, (r,) and (c,).
    """
    both = np.concatenate([rows, columns])
    if matched[:, 0].all() and matched[0].all():  # copies of one vector
        return both, np.repeat([columns[0], rows[0]], [len(rows), len(columns)])
    first, second = matched.nonzero().numpy().T
    if len(first) > len(both):
        graph = coo_matrix((np.ones(len(first), bool), (first, len(rows) + second)), (len(both),) * 2)
        _, label = connected_components(graph, directed=False)
        _, heads, of = np.unique(label, return_index=True, return_inverse=True)
        return both, both[heads][of]
    return rows[first], columns[second]
