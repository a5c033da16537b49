"""The teacher of self-distillation: a moving average of what is trained, in float32, that nobody trains.

Its momentum is fixed, as SILC's: a teacher that comes to rest stops learning from the texts (arXiv 2310.13355). It
begins as a copy of the student at the step where its objective joins.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput


class Teacher(nn.Module):
    """teacher ← momentum · teacher + (1 − momentum) · student, once for each step of the optimizer that used it.

    Its parameters require no gradient, so that neither optimizer nor DDP nor averages take them in. They are float32
    or better: in bfloat16 the steps of an average would be rounded away. It stays in eval mode.

    Args:
        student: what is followed; its structure is copied here, its values in `begin`.
        momentum: between 0 and 1.

    Raises:
        ValueError: for another momentum.
    """

    begun: torch.Tensor

    def __init__(self, student: nn.Module, momentum: float):
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"the momentum of a teacher must be at least 0 and below 1, got {momentum}")
        self.momentum = momentum
        self.average = frozen_copy(student)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._used = False

    def resemble(self, student: nn.Module) -> None:
        """Take over a structure that has changed since, as that of an adapter has when a Trainer mends it."""
        own, other = ([(name, p.shape) for name, p in one.named_parameters()] for one in (self.average, student))
        if own != other:
            self.average = frozen_copy(student)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._used = True
        return self.average(*args, **kwargs)

    def wait(self) -> None:
        """Begin with the student when `begin` comes, whatever was before."""
        self.begun.fill_(False)

    @torch.no_grad()
    def begin(self, student: nn.Module) -> None:
        """Become the student, unless that was done before, in this run or in the one that is resumed."""
        if self.begun.item():
            return
        for own, followed in zip(self.average.parameters(), student.parameters(), strict=True):
            own.copy_(followed)
        self.begun.fill_(True)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move towards the student, if this step has used the teacher and nobody else has asked for it."""
        if not self._used:
            return
        self._used = False
        averages: list[torch.Tensor] = list(self.average.parameters())
        followed = [one.to(own.dtype) for own, one in zip(averages, student.parameters(), strict=True)]
        torch._foreach_lerp_(averages, followed, 1 - self.momentum)


def frozen_copy(student: nn.Module) -> nn.Module:
    """In float32 or better, in eval mode, and not to be trained."""
    copied = copy.deepcopy(student).requires_grad_(False).eval()
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return copied


class VisionTeacher(Teacher):
    """The average of a vision tower, which several objectives share: it runs once for a batch.

    Under autocast it computes as the student does; its weights, and all that follows its features, are float32.
    """

    def features(self, outputs: ModelOutput, views: torch.Tensor) -> Any:
        """The tower's output for the global views (B, 3, H, W), kept with the outputs of the batch."""
        if "teacher" not in outputs:
            outputs["teacher"] = self(pixel_values=views)
        return outputs["teacher"]
