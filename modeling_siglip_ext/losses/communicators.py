"""What ranks of a data-parallel group say to each other: four small methods, for a process that is alone.

Here torch.distributed stands behind them, with whatever backend the group was made with, and torch_xla in
`xla/devices.py`; another runtime needs only these four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from .eager import all_gather, reduce_scatter


class Communicator:
    """The ranks that share one global batch. Every rank must make the same calls in the same order.

    As it stands here: one process that has the whole batch, and nobody to talk to.
    """

    rank: int = 0
    world_size: int = 1

    def exchange(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """The numbers of every rank, in rank order, on the host."""
        return [list(numbers)]

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, ...) on every rank -> (world_size * n, ...) in rank order."""
        return rows

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """(world_size * n, ...) on every rank -> (n, ...), the sum over ranks of this rank's part."""
        return rows

    def shift(self, tensors: Sequence[torch.Tensor], hops: int) -> Callable[[], list[torch.Tensor]]:
        """Start sending to rank + hops; the returned function waits for what rank - hops has sent."""
        return lambda: list(tensors)


class TorchDistributed(Communicator):
    """A process group of torch.distributed, on any backend."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)

    def exchange(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        # Host numbers go through the host where the group can do so (a group made without naming a backend can):
        # reading them back from an accelerator would wait for all the work queued there.
        if "cpu:" in dist.get_backend_config(self.group):
            device = torch.device("cpu")
        return self.all_gather(torch.tensor([numbers], dtype=torch.int64, device=device)).tolist()

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return all_gather(rows, self.group)

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return reduce_scatter(rows, self.group)

    def shift(self, tensors: Sequence[torch.Tensor], hops: int) -> Callable[[], list[torch.Tensor]]:
        there, here = (self._peer(self.rank + step) for step in (hops, -hops))
        sent = [tensor.contiguous() for tensor in tensors]
        received = [torch.empty_like(tensor) for tensor in sent]
        operations = [dist.P2POp(dist.isend, tensor, there, self.group) for tensor in sent]
        operations += [dist.P2POp(dist.irecv, tensor, here, self.group) for tensor in received]
        works = dist.batch_isend_irecv(operations)

        def wait() -> list[torch.Tensor]:
            for work in works:
                work.wait()
            sent.clear()  # until here the memory being sent had to stay
            return received

        return wait

    def _peer(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank % self.world_size)
