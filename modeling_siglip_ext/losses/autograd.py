"""Autograd for losses that compute their gradients together with their value.

A tile of logits is needed for the value and again for the gradients. Computing both while it is there saves computing
it twice, and leaves (B, D) gradients to keep instead of (B, B) logits. The backward is then one multiplication.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C import _autograd

from .tiles import accumulator_dtype


def register_gradients(
    operator: torch.library.CustomOpDef,
    arguments: int,
    further: Callable[..., tuple[torch.Tensor, ...]] = lambda *inputs: (),
) -> None:
    """Fake tensors and autograd for an operator that returns its loss and the gradients of its first arguments.

    The operator is `op(*arguments, labels, needs, ...) -> (loss, *gradients, *further)`, where `needs` says for each
    argument whether to compute its gradient (the others come back empty). Ask `needed` for it before the call: inside,
    autograd no longer tells. `further` gives fake tensors for results that no gradient goes through.
    """

    def fake(*inputs):
        loss = inputs[0].new_empty((), dtype=accumulator_dtype(inputs[0].dtype))
        needs = inputs[arguments + 1]
        gradients = (loss.new_empty(x.shape if need else (0,)) for x, need in zip(inputs, needs))
        return loss, *gradients, *further(*inputs)

    def save(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.needs = inputs[arguments + 1]
        ctx.dtypes = [argument.dtype for argument in inputs[:arguments]]
        ctx.other_inputs = [None] * (len(inputs) - arguments)
        ctx.save_for_backward(*output[1 : arguments + 1])

    def backward(ctx, grad_loss, *grad_gradients):
        if any(grad is not None for grad in grad_gradients):
            raise RuntimeError("the tiled loss has no second derivative: use implementation='eager'")
        kept = _graph_is_kept()
        gradients = []
        for need, dtype, gradient in zip(ctx.needs, ctx.dtypes, ctx.saved_tensors):
            scaled = gradient * grad_loss if kept else gradient.detach().mul_(grad_loss)
            # Cast only now: the factor of a GradScaler is in grad_loss, and keeps float16 from underflowing.
            gradients.append(scaled.to(dtype) if need else None)
        return *gradients, *ctx.other_inputs

    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=save)


def needed(arguments: Sequence[torch.Tensor]) -> list[bool]:
    return [torch.is_grad_enabled() and argument.requires_grad for argument in arguments]


def _graph_is_kept() -> bool:
    """Whether the saved gradients may be asked for again, so that they must not be overwritten."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return True
    return getattr(_autograd, "_get_current_graph_task_keep_graph", lambda: True)()
