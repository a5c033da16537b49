"""How the ranks of a data-parallel group show their texts to each other: `gather` and `ring`.

The losses hold on to their own images and let everybody's texts pass by. With `gather` all texts arrive at once; that
is the faster way while they fit. With `ring` they travel from neighbour to neighbour, in both directions at once, so
that a rank never holds more than a few local batches. Whatever is accumulated for a block of texts (their gradients,
their log-sum-exp) travels with the block or is reduced on the way home.

Everything is written against `Communicator` (`communicators.py`), behind which torch.distributed or torch_xla stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.distributed as dist

from .communicators import Communicator, TorchDistributed


# Up to this many elements of gathered texts (1 GiB as float32, and their gradient again) "auto" gathers.
GATHER_LIMIT = 2**28


# Custom operators take strings but no process groups, so a group goes by its name.


@torch.compiler.assume_constant_result
def communicator_name(group: dist.ProcessGroup | None, distribution: str) -> str:
    """The name under which `communicator` finds the ranks that share the batch; "" means this process alone."""
    if distribution == "none" or not (dist.is_available() and dist.is_initialized()):
        return ""
    if dist.get_rank(group) < 0:
        raise ValueError("group: this process is not a member of the process group it was given")
    members = group or dist.group.WORLD
    return "" if members is None or dist.get_world_size(members) == 1 else members.group_name


def communicator(name: str) -> Communicator:
    if name == "":
        return Communicator()
    if name == "xla":
        from .xla.devices import XlaDevices

        return XlaDevices()
    return TorchDistributed(dist.distributed_c10d._resolve_process_group(cast("dist.GroupName", name)))


def choose(distribution: str, sizes: Sequence[int], width: int) -> str:
    """ "gather" or "ring" for "auto", from the rows of all ranks and the width of one."""
    if distribution == "auto":
        return "gather" if sum(sizes) * width <= GATHER_LIMIT else "ring"
    return distribution


# ---- rows of all ranks: local batches may differ while collectives want equal ones, so rows are padded for the way


def gather_rows(comm: Communicator, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """(sizes[rank], ...) on every rank -> (sum(sizes), ...) in rank order."""
    gathered = comm.all_gather(_pad(rows, sizes))
    return gathered if _equal(sizes) else gathered[_not_padding(sizes, rows.device)]


def reduce_scatter_rows(comm: Communicator, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """(sum(sizes), ...) on every rank -> (sizes[rank], ...), the sum over ranks of this rank's rows."""
    if not _equal(sizes):
        padded = rows.new_zeros(max(sizes) * len(sizes), *rows.shape[1:])
        padded[_not_padding(sizes, rows.device)] = rows
        rows = padded
    return comm.reduce_scatter(rows)[: sizes[comm.rank]]


class GatherRows(torch.autograd.Function):
    """Differentiable `gather_rows`: what other ranks' losses say about our rows comes back in the gradient."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, comm: Communicator, sizes: Sequence[int]) -> torch.Tensor:
        ctx.comm, ctx.sizes = comm, sizes
        return gather_rows(comm, rows, sizes)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        return reduce_scatter_rows(ctx.comm, grads[0], ctx.sizes), None, None


def _pad(rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = max(sizes) - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _equal(sizes: Sequence[int]) -> bool:
    return min(sizes) == max(sizes)


def _not_padding(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    longest = max(sizes)
    return torch.cat([torch.arange(i * longest, i * longest + n, device=device) for i, n in enumerate(sizes)])


# ---- the sweep: every rank sees every block of rows once


class Sums:
    """Accumulated by adding, like gradients."""

    def __init__(self, like: torch.Tensor, width: int) -> None:
        self.like, self.width = like, width

    def new(self, rows: int) -> torch.Tensor:
        return self.like.new_zeros(rows, self.width)

    def merge(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one.add_(other)

    def reduce(self, comm: Communicator, partial: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return reduce_scatter_rows(comm, partial, sizes)


class LogSumExps:
    """Accumulated by log(exp(a) + exp(b)), like the normaliser of a softmax."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like = like

    def new(self, rows: int) -> torch.Tensor:
        return self.like.new_full((rows,), -torch.inf)

    def merge(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(one, other)

    def reduce(self, comm: Communicator, partial: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        # One number a row and rank: less than the rows themselves while there are fewer ranks than features.
        everybody = comm.all_gather(partial).view(comm.world_size, -1).logsumexp(0)
        return everybody.split(list(sizes))[comm.rank]


Block = list[torch.Tensor]
# Called with the global index of the first row, the rows, and the accumulated values to update in place.
Visit = Callable[[int, Block, Block], None]
Accumulators = Sequence[Sums | LogSumExps]


def sweep(
    comm: Communicator, distribution: str, sizes: Sequence[int], block: Block, accumulators: Accumulators, visit: Visit
) -> Block:
    """Show the rows of every rank to every rank, and bring home what was accumulated for our own.

    Args:
        distribution: "gather" or "ring".
        sizes: Rows of each rank.
        block: Tensors with sizes[rank] rows, the texts and what belongs to them.
        accumulators: What is accumulated for each row over all ranks; empty for nothing.
        visit: Called with the global index of the first row, the rows, and the accumulated values to update in place.

    Returns:
        The accumulated values of this rank's rows, one tensor an accumulator.
    """
    if distribution == "ring" and comm.world_size > 1:
        return _sweep_ring(comm, sizes, block, accumulators, visit)
    totals = [accumulator.new(sum(sizes)) for accumulator in accumulators]
    visit(0, [gather_rows(comm, rows, sizes) for rows in block], totals)
    if comm.world_size == 1:
        return totals
    return [accumulator.reduce(comm, total, sizes) for accumulator, total in zip(accumulators, totals)]


def _sweep_ring(
    comm: Communicator, sizes: Sequence[int], block: Block, accumulators: Accumulators, visit: Visit
) -> Block:
    world, longest = comm.world_size, max(sizes)
    starts = [0, *accumulate(sizes)]
    ways = [(direction, hops) for direction, hops in ((1, world // 2), (-1, (world - 1) // 2)) if hops]

    def new_totals() -> Block:
        return [accumulator.new(longest) for accumulator in accumulators]

    def show(owner: int, rows: Block, totals: Block) -> None:
        n = sizes[owner]
        visit(starts[owner], [tensor[:n] for tensor in rows], [total[:n] for total in totals])

    block = [_pad(rows, sizes) for rows in block]
    arriving = {direction: comm.shift(block, direction) for direction, _ in ways}
    own = new_totals()
    show(comm.rank, block, own)
    sent: dict[int, Callable[[], Block]] = {}  # accumulated along each way, and on its own way to us
    for step in range(1, world // 2 + 1):
        for direction, hops in ways:
            if step > hops:
                continue
            rows = arriving[direction]()
            if step < hops:  # they travel on while we look at them
                arriving[direction] = comm.shift(rows, direction)
            totals = sent[direction]() if direction in sent else new_totals()
            show((comm.rank - direction * step) % world, rows, totals)
            if totals:  # on with the rows, and from the last stop straight home
                sent[direction] = comm.shift(totals, direction if step < hops else -direction * hops)
    for wait in sent.values():
        own = [accumulator.merge(*pair) for accumulator, *pair in zip(accumulators, own, wait())]
    return [total[: sizes[comm.rank]] for total in own]
