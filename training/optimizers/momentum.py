"""What optimisers with a first moment in bfloat16 share: the step in blocks, and a state that survives loading.

On a CPU a parameter is updated in blocks of rows that fit the cache, so that memory is passed over about as often as
by a fused kernel. On GPUs many parameters are updated together (`together.py`). Elsewhere a block is the whole
parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from itertools import repeat
from typing import overload

import torch
from torch.distributed.tensor import DTensor

from .together import buckets


# Elements of a block: smaller ones would stay in a nearer cache, but cost more in calls than they gain.
BLOCK = 2**18
# Devices that have no kernels for lists of tensors.
ONE_BY_ONE = ("cpu", "mps", "xla", "meta")


class Bf16MomentumOptimizer(torch.optim.Optimizer, ABC):
    """Base of the optimisers here. A subclass has `update`, which moves one parameter.

    Computes in float32, or in float64 where parameters are. Second moments are kept in that precision whatever the
    parameters' own, and `load_state_dict` brings every tensor back in the precision it was saved in, where
    `torch.optim.Optimizer` would cast it to the parameter's.

    Args:
        params: parameters, or groups of them.
        defaults: settings of groups that do not have their own.
        foreach: whether many parameters take a step together; by default they do on GPUs. Shards never do.
    """

    def __init__(self, params: Iterable[torch.Tensor] | Iterable[dict], defaults: dict, foreach: bool | None = None):
        self.foreach = foreach
        super().__init__(params, defaults)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "foreach": self.foreach}  # of a copy, too

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    # as in torch's optimisers a tensor, and on the CPU, where reading it waits for nothing
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                if self._goes_together(parameter):
                    together.append(parameter)
                else:
                    self.update(parameter, parameter.grad, state, group)
            for bucket in buckets(together, self._kind(group)):
                self.update_together(bucket, [self.state[parameter] for parameter in bucket], group)
        return loss

    def _goes_together(self, parameter: torch.Tensor) -> bool:
        wanted = parameter.device.type not in ONE_BY_ONE if self.foreach is None else self.foreach
        return wanted and not isinstance(parameter, DTensor)

    def _kind(self, group: dict) -> Callable[[torch.Tensor], Hashable]:
        """What parameters that take a step together must have in common."""

        def kind(parameter: torch.Tensor) -> Hashable:
            step = self.state[parameter]["step"].item()
            return parameter.device, parameter.dtype, step, self.layout(parameter, group)

        return kind

    @abstractmethod
    def update(self, parameter: torch.Tensor, grad: torch.Tensor, state: dict, group: dict) -> None:
        """Move one parameter by its gradient.

        Args:
            state: "step", counted from 1, "exp_avg", the first moment, and what the subclass adds.
            group: settings of the parameter's group.
        """

    @abstractmethod
    def update_together(self, parameters: list[torch.Tensor], states: list[dict], group: dict) -> None:
        """The same for parameters of one device, precision, step and `layout`."""

    def layout(self, parameter: torch.Tensor, group: dict) -> Hashable:
        """What else they must have in common."""
        return None

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, saved in state_dict["state"].get(number, {}).items():
                cast = self.state[parameter][name]
                if name == "step":  # on the device, where Trainer loads it, each reading would wait
                    self.state[parameter][name] = torch.as_tensor(saved).cpu().clone()
                elif isinstance(saved, torch.Tensor) and saved.dtype != cast.dtype:
                    self.state[parameter][name] = saved.to(cast.device, copy=True)


def compute_dtype(parameter: torch.Tensor) -> torch.dtype:
    """float32, or float64 for a parameter of that precision."""
    return torch.promote_types(parameter.dtype, torch.float32)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def row_blocks(first: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Blocks of rows of several tensors side by side; one with a single row is repeated, as in broadcasting."""
    if first.ndim == 0:
        yield first, *others
        return
    rows = block_rows(first)
    parts = [other.split(rows) if len(other) == len(first) else repeat(other) for other in others]
    yield from zip(first.split(rows), *parts)


def block_rows(tensor: torch.Tensor) -> int:
    """Rows of a block of a tensor."""
    rows = max(1, len(tensor))
    if tensor.device.type != "cpu":
        return rows
    return min(rows, max(1, BLOCK * rows // max(1, tensor.numel())))


def scratch(tensor: torch.Tensor, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    """Arrays as large as the largest block of a tensor."""
    shape = tensor.shape if tensor.ndim == 0 else (block_rows(tensor), *tensor.shape[1:])
    return [torch.empty(shape, dtype=dtype, device=tensor.device) for _ in range(count)]


def rows_of(arrays: list[torch.Tensor], block: torch.Tensor) -> list[torch.Tensor]:
    """The arrays with as many rows as a block, which is smaller at the end of a tensor."""
    return [array if array.shape == block.shape else array[: len(block)] for array in arrays]


def decayed_moment_(moment: torch.Tensor, momentum: float, out: torch.Tensor) -> torch.Tensor:
    """momentum × moment in the precision of `out`.

    As in optax, the factor and the product are rounded to bfloat16, too: 0.9 is 0.8984 there. `moment` is overwritten.
    """
    return out.copy_(moment.mul_(bfloat16(momentum)))


@cache
def bfloat16(number: float) -> float:
    """The nearest number that bfloat16 can hold."""
    return torch.tensor(number, dtype=torch.bfloat16).item()


def descend_(parameter: torch.Tensor, update: torch.Tensor, lr: float, weight_decay: float) -> None:
    """Weight decay and the step itself."""
    if weight_decay:
        parameter.mul_(1 - lr * weight_decay)
    parameter.add_(update, alpha=-lr)
