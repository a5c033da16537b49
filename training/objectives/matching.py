"""How well a student's vectors match the teacher's, in terms of prototypes: SILC's and iBOT's loss with its center.

The center is a moving average of the teacher's logits over the global batch. A step uses the center of the steps
before it: sums go over chunks, accumulated batches and processes, and are applied once, after the step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from .collapse import CollapseWarning
from .heads import ProjectionHead, unit
from .prototype_loss import prototype_loss
from .teacher import Teacher


@dataclass(frozen=True)
class MatchingSettings:
    """Of SILC where it is known, else of DINO, on which SILC builds.

    `momentum`, fixed, is that of the teacher, `center_momentum` that of the center; `hidden`, `bottleneck` and
    `prototypes` are the widths of the head.

    Raises:
        ValueError: naming the setting that is out of range.
    """

    momentum: float = 0.966
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65_536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    center_momentum: float = 0.9

    def __post_init__(self):
        for name in ("momentum", "center_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("student_temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, least in (("hidden", 1), ("bottleneck", 1), ("prototypes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class Matching(nn.Module):
    """The student's head, the teacher's, and the center.

    Args:
        name: of the objective, for warnings.
        width: of the features.
        settings: see `MatchingSettings`.
    """

    center: torch.Tensor

    def __init__(self, name: str, width: int, settings: MatchingSettings):
        super().__init__()
        self.settings = settings
        self.head = ProjectionHead(width, settings.hidden, settings.bottleneck, settings.prototypes)
        self.teacher = Teacher(self.head, settings.momentum)
        self.register_buffer("center", torch.zeros(settings.prototypes))
        # Of the step that is under way, and of the last one. No buffers: DDP would give all processes those of one.
        self._sums: dict[str, torch.Tensor] = {}
        self._last: dict[str, torch.Tensor] = {}
        self._warning = CollapseWarning(name)

    def teacher_prototypes(self) -> torch.Tensor:
        return cast(ProjectionHead, self.teacher.average).prototypes()

    def wait(self) -> None:
        """Forget the teacher's head and its center."""
        self.teacher.wait()
        self.center.zero_()

    def begin(self) -> None:
        """The teacher's head becomes the student's, unless it has begun before."""
        self.teacher.begin(self.head)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """
        Args:
            student: features (rows, views, width).
            teacher: features (rows, width).
            weights: of the rows in the loss, (rows,).
        """
        head, teacher = self.head, teacher.detach()
        wanted = self.teacher(teacher)
        with torch.autocast(student.device.type, enabled=False):
            prototypes, teacher_prototypes = head.prototypes(), self.teacher_prototypes()
        loss, entropy, probabilities = prototype_loss(
            head(student),
            prototypes,
            wanted,
            teacher_prototypes,
            self.center,
            weights,
            (self.settings.student_temperature, self.settings.teacher_temperature),
        )
        sums = {
            "rows": wanted.new_full((1,), len(wanted)),
            # The teacher's logits are linear in its directions, of which there are far fewer.
            "directions": wanted.sum(0),
            "entropy": entropy[None],
            "probabilities": probabilities,
            "features": unit(teacher).sum(0),
        }
        self._sums = {name: self._sums[name] + value if self._sums else value for name, value in sums.items()}
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Apply the step's sums to the center, and let the teacher's head follow."""
        self._last, self._sums = self._sums, {}
        if not self._last:
            return
        sums = over_processes(torch.cat([self._last["directions"], self._last["rows"]]))
        logits = self.teacher_prototypes() @ (sums[:-1] / sums[-1].clamp(min=1))
        moved = self.center.lerp(logits, 1 - self.settings.center_momentum)
        self.center.copy_(torch.where(sums[-1] > 0, moved, self.center))
        self.teacher.follow(self.head)
        self._warning.steps += 1

    def figures(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Of the last step: entropies in nats, spread of the teacher's features (0: all the same), center's norm.

        Args:
            reduce: sums a tensor over the processes.
        """
        if not self._last:
            return {}
        order = ("rows", "entropy", "probabilities", "features")
        total = reduce(torch.cat([self._last[name] for name in order])).cpu().double()
        rows, entropy, probabilities, features = total.split([len(self._last[name]) for name in order])
        if not rows.item():
            return {}
        figures = {
            "teacher_entropy": (entropy / rows).item(),
            "mean_teacher_entropy": torch.special.entr(probabilities / rows).sum().item(),
            "feature_spread": 1 - (features / rows).square().sum().item(),
            "center_norm": self.center.cpu().double().norm().item(),
        }
        self._warning.look(figures, int(rows.item()), len(probabilities))
        return figures


def over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
