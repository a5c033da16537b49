"""AdamW with its first moment in bfloat16, as big_vision trains with: three quarters of AdamW's state."""

from collections.abc import Iterable

import torch

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


class AdamWBf16(Bf16MomentumOptimizer):
    """AdamW, first moment in bfloat16 (optax `scale_by_adam` with `mu_dtype="bfloat16"`).

    Args:
        params: parameters, or groups of them with an `lr` and a `weight_decay` of their own.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: a step takes `lr × weight_decay` off each weight.
        foreach: whether many parameters take a step together; by default they do on GPUs.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, foreach)

    def update(self, parameter: torch.Tensor, grad: torch.Tensor, state: dict, group: dict) -> None:
        if "exp_avg_sq" not in state:
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=compute_dtype(parameter))
        step, (beta1, beta2), lr = state["step"].item(), group["betas"], float(group["lr"])
        tensors = [local(tensor) for tensor in (parameter, grad, state["exp_avg"], state["exp_avg_sq"])]
        arrays = scratch(tensors[0], tensors[3].dtype, 2)
        for weight, grad_block, moment, square in row_blocks(*tensors):
            update, other = rows_of(arrays, weight)
            update.copy_(grad_block)
            square.lerp_(torch.square(update, out=other), 1 - beta2)
            update.mul_(1 - beta1).add_(decayed_moment_(moment, beta1, out=other))
            moment.copy_(update)
            torch.div(square, 1 - beta2**step, out=other).sqrt_().add_(group["eps"])
            descend_(weight, update.div_(1 - beta1**step).div_(other), lr, group["weight_decay"])

    def update_together(self, parameters: list[torch.Tensor], states: list[dict], group: dict) -> None:
        dtype = compute_dtype(parameters[0])
        step, (beta1, beta2), lr = states[0]["step"].item(), group["betas"], float(group["lr"])
        for parameter, state in zip(parameters, states):
            if "exp_avg_sq" not in state:
                state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        moments, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        grads = gradients(parameters, dtype)
        add_square_(squares, grads, beta2)
        updates = decayed_moments_(moments, bfloat16(beta1), dtype)
        torch._foreach_add_(updates, grads, alpha=1 - beta1)
        torch._foreach_copy_(moments, updates)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        with decayed_weights(parameters, lr, group["weight_decay"], dtype) as weights:
            torch._foreach_addcdiv_(weights, updates, roots, -lr / (1 - beta1**step))
