"""The cross-entropy of DINO and iBOT over tens of thousands of prototypes, without the logits of a whole batch.

The gradient of a softmax with fixed targets is known with its value, so both are computed for a few rows at a time,
and no logits wait for the backward pass: 65,536 prototypes and the patches of 64 images would be 4 GB of them.
"""

from typing import Any, NamedTuple

import torch


LOGITS = 2**24
"""Logits (of student or teacher) that are held at once: 64 MB in float32."""


class Matched(NamedTuple):
    loss: torch.Tensor
    """Scalar."""
    entropy: torch.Tensor
    """Sum over the teacher's rows of their entropies, in nats."""
    probabilities: torch.Tensor
    """Sum over the teacher's rows of their distributions, (K,)."""


def prototype_loss(
    student: torch.Tensor,
    prototypes: torch.Tensor,
    teacher: torch.Tensor,
    teacher_prototypes: torch.Tensor,
    center: torch.Tensor,
    weights: torch.Tensor,
    temperatures: tuple[float, float],
) -> Matched:
    """−Σ_rows weight · mean_views Σ_K softmax((t − center) / τ_t) · log_softmax(s / τ_s), outside of autocast.

    Args:
        student: directions (rows, views, d), float32 or float64 as all that follows.
        prototypes: the student's, (K, d).
        teacher: directions (rows, d); no gradient goes there, nor to what follows.
        teacher_prototypes: (K, d).
        center: (K,), taken off the teacher's logits.
        weights: of the rows, (rows,).
        temperatures: of the student and of the teacher.
    """
    with torch.autocast(student.device.type, enabled=False):
        return Matched(
            *_PrototypeLoss.apply(
                student, prototypes, teacher, teacher_prototypes, center, weights.to(student.dtype), temperatures
            )
        )


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        prototypes: torch.Tensor,
        teacher: torch.Tensor,
        teacher_prototypes: torch.Tensor,
        center: torch.Tensor,
        weights: torch.Tensor,
        temperatures: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        views = student.shape[1]
        warm, sharp = temperatures
        loss, entropy, probabilities = student.new_zeros(()), student.new_zeros(()), torch.zeros_like(center)
        wanted_gradients = any(ctx.needs_input_grad)
        to_student, to_prototypes = torch.empty_like(student), torch.zeros_like(prototypes)
        rows = max(1, LOGITS // (views * len(prototypes)))
        for start in range(0, len(student), rows):
            part = slice(start, start + rows)
            targets = ((teacher[part] @ teacher_prototypes.t() - center) / sharp).softmax(-1)
            entropy += torch.special.entr(targets).sum()
            probabilities += targets.sum(0)
            targets, share = targets[:, None], weights[part, None, None] / views
            found = (student[part] @ prototypes.t() / warm).log_softmax(-1)
            loss -= (found * targets * share).sum()
            if wanted_gradients:
                to_logits = found.exp_().sub_(targets).mul_(share / warm)
                to_student[part] = to_logits @ prototypes
                to_prototypes.addmm_(to_logits.flatten(0, 1).t(), student[part].flatten(0, 1))
        if wanted_gradients:
            ctx.save_for_backward(to_student, to_prototypes)
        ctx.mark_non_differentiable(entropy, probabilities)
        return loss, entropy, probabilities

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_student, to_prototypes = ctx.saved_tensors
        return gradients[0] * to_student, gradients[0] * to_prototypes, None, None, None, None, None
