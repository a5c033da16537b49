"""ScalingViT-Adafactor, the optimiser of SigLIP, with a quarter of AdamW's state.

Adafactor (arXiv 1804.04235) as "Scaling Vision Transformers" (arXiv 2106.04560) changed it: a first moment, in
bfloat16, is kept, while the update is neither clipped nor scaled by the parameter. This follows big_vision's
`scale_by_adafactor`.
"""

from collections.abc import Hashable, Iterable
from functools import cache
from types import ModuleType

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate

from .momentum import (
    Bf16MomentumOptimizer,
    bfloat16,
    compute_dtype,
    decayed_moment_,
    descend_,
    local,
    row_blocks,
    rows_of,
    scratch,
)
from .together import add_square_, decayed_moments_, decayed_weights, gradients


class ScalingViTAdafactor(Bf16MomentumOptimizer):
    """Adafactor with a bfloat16 first moment, without update clipping and parameter scaling.

    The second moment of an array whose two largest sides have at least `min_dim_size_to_factor` elements is kept as
    its means along each of the two, that of any other array whole. Its decay rate at step t is
    min(`beta2_cap`, 1 − t^−`decay_rate`). There is no bias correction: the first moment starts at zero.

    Which sides are factored depends on the layout. big_vision keeps an attention kernel as (width, heads, head width)
    and factors it over width and head width, for each head; here it is (width, width) and factored as one matrix, and
    the packed query, key and value kernel of the MAP head as one, too. All else is factored alike.

    Works on parameters sharded by `fully_shard`: the means run over all shards, so the step is that of one device.
    The flat parameters of the first FSDP have one side, and are not factored.

    On a CPU a step in float32 takes about as long as one of torch's fused AdamW where numba is installed
    (`cpu_kernels.py`), and nearly three times as long where it is not.

    Args:
        params: parameters, or groups of them with an `lr` and a `weight_decay` of their own.
        lr: learning rate.
        momentum: decay of the first moment.
        beta2_cap: largest decay of the second moment. 0.999 gives loss spikes (arXiv 2303.15343, section 4.6).
        decay_rate: how fast the second moment's decay grows to its cap.
        min_dim_size_to_factor: as above.
        eps: added to squared gradients.
        weight_decay: a step takes `lr × weight_decay` off each weight.
        foreach: whether many parameters take a step together; by default they do on GPUs. Shards never do.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.training.optimizers import ScalingViTAdafactor
    >>> layer = torch.nn.Linear(64, 48)
    >>> optimizer = ScalingViTAdafactor(layer.parameters(), lr=1e-3)
    >>> layer(torch.ones(2, 64)).sum().backward()
    >>> optimizer.step()
    >>> {name: tuple(value.shape) for name, value in optimizer.state[layer.weight].items()}
    {'step': (), 'exp_avg': (48, 64), 'exp_avg_sq_row': (48, 1), 'exp_avg_sq_col': (1, 64)}

    ```"""

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict],
        lr: float = 1e-3,
        momentum: float = 0.9,
        beta2_cap: float = 0.95,
        decay_rate: float = 0.8,
        min_dim_size_to_factor: int = 32,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "beta2_cap": beta2_cap,
            "decay_rate": decay_rate,
            "min_dim_size_to_factor": min_dim_size_to_factor,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, settings, foreach)

    def update(self, parameter: torch.Tensor, grad: torch.Tensor, state: dict, group: dict) -> None:
        beta2 = decay_of_squares(state, group)
        dims = factored_dims(tuple(parameter.shape), group["min_dim_size_to_factor"])
        if dims is None:
            self._update_whole(parameter, grad, state, group, beta2)
        else:
            self._update_factored(parameter, grad, state, group, beta2, dims)

    def _update_whole(
        self, parameter: torch.Tensor, grad: torch.Tensor, state: dict, group: dict, beta2: float
    ) -> None:
        if "exp_avg_sq" not in state:
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=compute_dtype(parameter))
        tensors = [local(tensor) for tensor in (parameter, grad, state["exp_avg"], state["exp_avg_sq"])]
        momentum, lr = group["momentum"], float(group["lr"])
        kernels = cpu_kernels(*tensors[:2])
        if kernels:
            factors = beta2, group["eps"], bfloat16(momentum), 1 - momentum
            kernels.descend_whole(*tensors, *factors, lr, group["weight_decay"])
            return
        arrays = scratch(tensors[0], tensors[3].dtype, 2)
        for weight, grad_block, moment, square in row_blocks(*tensors):
            update, other = rows_of(arrays, weight)
            update.copy_(grad_block)
            square.lerp_(torch.square(update, out=other).add_(group["eps"]), 1 - beta2)
            update.mul_(torch.rsqrt(square, out=other)).mul_(1 - momentum)
            moment.copy_(update.add_(decayed_moment_(moment, momentum, out=other)))
            descend_(weight, update, lr, group["weight_decay"])

    def _update_factored(
        self,
        parameter: torch.Tensor,
        grad: torch.Tensor,
        state: dict,
        group: dict,
        beta2: float,
        dims: tuple[int, int],
    ) -> None:
        for name, mean in zip(("exp_avg_sq_row", "exp_avg_sq_col"), mean_squares(grad, dims)):
            # at the first step the decay is 0
            state[name] = state[name].lerp_(mean + group["eps"], 1 - beta2) if name in state else mean + group["eps"]
        row_squares, column_squares, shorter = state["exp_avg_sq_row"], state["exp_avg_sq_col"], dims[0]
        total = sum_over_shards(local(row_squares).sum(shorter, keepdim=True), row_squares, shorter)
        row_factor = (local(row_squares) / (local(total) / parameter.shape[shorter])).rsqrt_()
        row_factor *= 1 - group["momentum"]
        column_factor = local(column_squares).rsqrt()

        tensors = [local(parameter), local(grad), local(state["exp_avg"]), row_factor, column_factor]
        momentum, lr = group["momentum"], float(group["lr"])
        kernels = cpu_kernels(*tensors[:2])
        if kernels and parameter.ndim == 2:
            row_first = dims == (0, 1)
            factors = (row_factor, column_factor) if row_first else (column_factor, row_factor)
            kernels.descend_factored(*tensors[:3], *factors, bfloat16(momentum), lr, group["weight_decay"], row_first)
            return
        arrays = scratch(tensors[0], row_factor.dtype, 2)
        for weight, grad_block, moment, by_row, by_column in row_blocks(*tensors):
            update, other = rows_of(arrays, weight)
            decayed_moment_(moment, momentum, out=other)
            torch.addcmul(other, torch.mul(grad_block, by_row, out=update), by_column, out=update)
            moment.copy_(update)
            descend_(weight, update, lr, group["weight_decay"])

    def layout(self, parameter: torch.Tensor, group: dict) -> Hashable:
        """Matrices of one shape are factored in one tensor."""
        shape = tuple(parameter.shape)
        return shape if factored_dims(shape, group["min_dim_size_to_factor"]) else None

    def update_together(self, parameters: list[torch.Tensor], states: list[dict], group: dict) -> None:
        dims = factored_dims(tuple(parameters[0].shape), group["min_dim_size_to_factor"])
        if dims is None:
            self._update_whole_together(parameters, states, group)
        else:
            self._update_factored_together(parameters, states, group, dims)

    def _update_whole_together(self, parameters: list[torch.Tensor], states: list[dict], group: dict) -> None:
        dtype, momentum, lr = compute_dtype(parameters[0]), group["momentum"], float(group["lr"])
        for parameter, state in zip(parameters, states):
            if "exp_avg_sq" not in state:
                state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        moments, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        grads = gradients(parameters, dtype)
        beta2 = decay_of_squares(states[0], group)
        add_square_(squares, grads, beta2)
        torch._foreach_add_(squares, (1 - beta2) * group["eps"])
        updates = decayed_moments_(moments, bfloat16(momentum), dtype)
        torch._foreach_addcmul_(updates, grads, torch._foreach_rsqrt(squares), 1 - momentum)
        torch._foreach_copy_(moments, updates)
        with decayed_weights(parameters, lr, group["weight_decay"], dtype) as weights:
            torch._foreach_add_(weights, updates, alpha=-lr)

    def _update_factored_together(
        self, parameters: list[torch.Tensor], states: list[dict], group: dict, dims: tuple[int, int]
    ) -> None:
        dtype, momentum, lr = compute_dtype(parameters[0]), group["momentum"], float(group["lr"])
        updates = torch.stack(gradients(parameters, dtype))
        shorter, longer = (dim + 1 for dim in dims)
        squares, beta2 = updates.square(), decay_of_squares(states[0], group)
        factors = []
        for name, dim in (("exp_avg_sq_row", longer), ("exp_avg_sq_col", shorter)):
            mean = squares.mean(dim, keepdim=True).add_(group["eps"])
            for state in states:
                if name not in state:
                    state[name] = torch.zeros_like(mean[0])
            kept = [state[name] for state in states]
            factors.append(torch.stack(kept).lerp_(mean, 1 - beta2))
            torch._foreach_copy_(kept, list(factors[-1].unbind()))
        del squares
        by_row, by_column = factors
        by_row = (by_row / by_row.mean(shorter, keepdim=True)).rsqrt_().mul_(1 - momentum)
        updates.mul_(by_row).mul_(by_column.rsqrt())
        moments = [state["exp_avg"] for state in states]
        torch._foreach_mul_(moments, bfloat16(momentum))
        updates.add_(torch.stack(moments))
        each = list(updates.unbind())
        torch._foreach_copy_(moments, each)
        with decayed_weights(parameters, lr, group["weight_decay"], dtype) as weights:
            torch._foreach_add_(weights, each, alpha=-lr)


def decay_of_squares(state: dict, group: dict) -> float:
    """The decay of the second moment at the step that is made."""
    return min(group["beta2_cap"], 1 - state["step"].item() ** -group["decay_rate"])


def cpu_kernels(*tensors: torch.Tensor) -> ModuleType | None:
    """The compiled loops, if they take these: float32 on the CPU, contiguous, and outside of torch.compile."""
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return imported_kernels() if plain and not torch.compiler.is_compiling() else None


@cache
def imported_kernels() -> ModuleType | None:
    """None without numba. Importing it takes half a second, which nobody should pay for who trains elsewhere."""
    try:
        from . import cpu_kernels
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return cpu_kernels


def factored_dims(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """The second largest and the largest dimension, if both have at least `least` elements; of equals the later."""
    if len(shape) < 2:
        return None
    shorter, longer = sorted(range(len(shape)), key=lambda dim: shape[dim])[-2:]
    return (shorter, longer) if shape[shorter] >= least else None


def mean_squares(grad: torch.Tensor, dims: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the squared gradient over the longer and over the shorter of two dimensions, which keep size 1."""
    shorter, longer = dims
    own = local(grad)
    kernels = cpu_kernels(own)
    if kernels and own.ndim == 2:
        over_columns, over_rows = kernels.square_sums(own)
        sums = (over_columns, over_rows) if longer == 1 else (over_rows, over_columns)
    else:
        sums = square_sums(own, dims)
    over_longer, over_shorter = (sum_over_shards(part, grad, dim) for part, dim in zip(sums, (longer, shorter)))
    return over_longer / grad.shape[longer], over_shorter / grad.shape[shorter]


def square_sums(grad: torch.Tensor, dims: tuple[int, int]) -> list[torch.Tensor]:
    """Sums of the squared gradient over the longer and over the shorter of two dimensions, which keep size 1."""
    shorter, longer = dims
    sums = [grad.new_zeros(_with_one(grad.shape, dim), dtype=compute_dtype(grad)) for dim in (longer, shorter)]
    arrays = scratch(grad, sums[0].dtype, 1)
    for block, *parts in row_blocks(grad, *sums):
        (square,) = rows_of(arrays, block)
        torch.mul(block, block.to(square.dtype), out=square)
        for dim, part in zip((longer, shorter), parts):
            if dim == 0:
                part += square.sum(0, keepdim=True)
            else:
                torch.sum(square, dim, keepdim=True, out=part)
    return sums


def sum_over_shards(sums: torch.Tensor, source: torch.Tensor, dim: int) -> torch.Tensor:
    """The sums of all processes along a dimension, from those of each.

    Args:
        sums: of this process's part of `source` along `dim`, which has size 1.
        source: what is summed, a plain tensor or a `DTensor`.

    Returns:
        `sums`, or for a `DTensor` one that is sharded like `source`, but not along `dim`.
    """
    if not isinstance(source, DTensor):
        return sums
    placements = [Partial() if place.is_shard(dim) else place for place in source.placements]
    shape = _with_one(source.shape, dim)
    stride = torch.empty(shape, device="meta").stride()
    partial = DTensor.from_local(sums, source.device_mesh, placements, run_check=False, shape=shape, stride=stride)
    return partial.redistribute(placements=[Replicate() if place.is_partial() else place for place in placements])


def _with_one(shape: torch.Size, dim: int) -> torch.Size:
    return torch.Size([*shape[:dim], 1, *shape[dim + 1 :]])
