"""The ranks of `torch_xla.launch`: one device each, driven by a thread or a process that traces the same graph.

Under SPMD there is nothing to do here: one process holds the global batch, and the compiler shards it. Only modules
that have met a tensor on an XLA device import this one, so torch_xla is needed nowhere else.

What was run: `all_gather` and `reduce_scatter` on several XLA:CPU devices (torch_xla 2.9). What was not:
`collective_permute`, behind `distribution="ring"`, which does not complete on XLA:CPU; its tests replace the
instruction. Nothing here has met a TPU yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr

from ..communicators import Communicator


def communicator_name(group: dist.ProcessGroup | None, distribution: str) -> str:
    """As `distribution.communicator_name`, for tensors on an XLA device.

    Raises:
        ValueError: for a process group; the devices of a launch are one group.
        RuntimeError: where the runtime does not see the processes that were started.
    """
    if distribution == "none":
        return ""
    if group is not None:
        raise ValueError("group: on XLA devices the batch is shared by all of them; leave group unset")
    check_world_size()
    return "xla" if xr.world_size() > 1 else ""


def check_world_size() -> None:
    """Refuse processes that do not know of each other: each would take its own batch for the global one.

    torchrun starts processes and tells each the number of all; the XLA runtime does not always heed it, and then
    reports one device, of rank 0, in every process.

    Raises:
        RuntimeError: with the remedy.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and xr.world_size() == 1 and xr.process_count() == 1:
        raise RuntimeError(
            f"WORLD_SIZE={started} processes were started, but torch_xla sees only this one, so each would train "
            "alone on its own batch. Start with `accelerate launch --tpu`, torch_xla.launch or SPMD (one process a "
            "host) in place of torchrun"
        )


class XlaDevices(Communicator):
    """All devices of the launch."""

    def __init__(self) -> None:
        self.rank, self.world_size = xr.global_ordinal(), xr.world_size()
        self._collective: dict[str, Any] = {"groups": [list(range(self.world_size))], "pin_layout": False}
        if xr.device_type() == "CPU":  # where the plain form aborts
            self._collective |= {"channel_id": 1, "use_global_device_ids": True}

    def exchange(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Ours, for every rank: all trace one graph with fixed shapes, and asking would wait for the device."""
        return [list(numbers) for _ in range(self.world_size)]

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return xm.all_gather(rows, dim=0, **self._collective)

    def reduce_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        count = self.world_size
        return xm.reduce_scatter(xm.REDUCE_SUM, rows, 1.0, scatter_dim=0, shard_count=count, **self._collective)

    def shift(self, tensors: Sequence[torch.Tensor], hops: int) -> Callable[[], list[torch.Tensor]]:
        """Part of the graph: the compiler decides when the rows travel. The instruction has never run, see above."""
        pairs = [[rank, (rank + hops) % self.world_size] for rank in range(self.world_size)]
        received = [xm.collective_permute(tensor, pairs) for tensor in tensors]
        return lambda: received
