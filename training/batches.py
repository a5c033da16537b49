"""Batches that hold hard negatives: an order of the data in which variants of one thing stand next to each other.

In a shuffled order two variants of a thing (one shirt in two colours, one emoji in two skin tones) rarely meet in a
small batch, and a contrastive loss learns little of what sets them apart.
"""

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GroupedSampler(Sampler[int]):
    """A shuffled order in which up to `size` members of a group follow each other.

    The order depends on (seed, epoch) alone: it is the same for any number of processes, and after a resume.

    Args:
        groups: the group of each row; rows without one (None) stand alone.
        size: members that stay together. Larger groups are dealt out anew into pieces of this size at every epoch.
        seed: of the order.

    Raises:
        ValueError: if `size` is less than 1.

    Example:
        >>> list(GroupedSampler(["a", "b", "a", "b"], size=2, seed=0))  # both a's, then both b's, or the other way
        [2, 0, 1, 3]
    """

    def __init__(self, groups: Sequence[Hashable], size: int, seed: int = 0):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        numbers: dict[Hashable, int] = {}
        self.groups = [
            numbers.setdefault(("row", row) if group is None else group, len(numbers))
            for row, group in enumerate(groups)
        ]
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        # (seed 0, epoch 1) is not (seed 1, epoch 0)
        generator = torch.Generator().manual_seed(self.seed + 2**32 * self.epoch)
        members: dict[int, list[int]] = {}
        for row in torch.randperm(len(self.groups), generator=generator).tolist():
            members.setdefault(self.groups[row], []).append(row)
        pieces = [rows[i : i + self.size] for rows in members.values() for i in range(0, len(rows), self.size)]
        for piece in torch.randperm(len(pieces), generator=generator).tolist():
            yield from pieces[piece]
