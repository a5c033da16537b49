"""Batches that hold hard negatives: an order of the data in which variants of one thing stand next to each other.

In a shuffled order two variants of a thing (one shirt in two colours, one emoji in two skin tones) rarely meet in a
small batch, and a contrastive loss learns little of what sets them apart. From the first step on, however, such
batches hold a small model on the plateau where it predicts the same for all pairs; let it learn the easy things first.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


class GroupedSampler(Sampler[int]):
    """A shuffled order in which, from some epoch on, up to `size` members of a group follow each other.

    The order depends on (seed, epoch) alone: it is the same for any number of processes, and after a resume.

    Args:
        groups: the group of each row, of any type; rows without one (None, NaN) stand alone.
        size: members that stay together. Larger groups are dealt out anew into pieces of this size at every epoch.
        seed: of the order.
        first_epoch: before this epoch all rows stand alone.

    Raises:
        ValueError: if `size` is less than 1.

    Example:
        >>> list(GroupedSampler(["a", "b", "a", "b"], size=2, seed=0))  # both b's, then both a's, or the other way
        [3, 1, 0, 2]
    """

    def __init__(self, groups: Sequence[Any], size: int, seed: int = 0, first_epoch: int = 0):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        numbers: dict[str | int, int] = {}
        self.groups = [
            numbers.setdefault(row if group is None or group != group else repr(group), len(numbers))
            for row, group in enumerate(groups)
        ]
        self.size = size
        self.seed = seed
        self.first_epoch = first_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        # torch's generator takes 32 bits of a seed, so neither a sum nor a shift would keep all pairs apart
        digest = hashlib.blake2b(f"{self.seed}/{self.epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        members: dict[int, list[int]] = {}
        for row in torch.randperm(len(self.groups), generator=generator).tolist():
            members.setdefault(self.groups[row], []).append(row)
        size = self.size if self.epoch >= self.first_epoch else 1
        pieces = [rows[i : i + size] for rows in members.values() for i in range(0, len(rows), size)]
        for piece in torch.randperm(len(pieces), generator=generator).tolist():
            yield from pieces[piece]
