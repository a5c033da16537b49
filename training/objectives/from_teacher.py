"""What the objectives have in common whose targets a teacher gives: when it begins, and what follows each step."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from .matching import Matching
from .model import TrainedObjective
from .teacher import VisionTeacher
from .vision_tower import vision_tower


class FromTeacher(TrainedObjective):
    """Matches what the vision tower finds with what its teacher finds.

    Args:
        matching: of the two.
        teacher: of the dual model's vision tower.
        owns_teacher: whether the teacher is kept and saved here; one of those who share it does.
    """

    def __init__(self, matching: Matching, teacher: VisionTeacher, owns_teacher: bool):
        super().__init__()
        self.matching = matching
        self._teacher = (teacher,)  # in a tuple it is no submodule
        if owns_teacher:
            self.teacher = teacher

    @staticmethod
    def suits(core: nn.Module) -> None:
        """Refuse a tower that this objective cannot train; crops need one of any size that pools, masks do not.

        Raises:
            ValueError: says why, see `check_tower`.
        """
        raise NotImplementedError

    def check(self, core: nn.Module) -> None:
        self.suits(core)
        self._teacher[0].resemble(vision_tower(core))

    def identity(self) -> dict[str, Any]:
        return asdict(self.matching.settings)

    def wait(self) -> None:
        """A teacher that has stood still since is none to go on with."""
        self._teacher[0].wait()
        self.matching.wait()

    def join(self, core: nn.Module) -> None:
        self._teacher[0].begin(vision_tower(core))
        self.matching.begin()

    def after_step(self, core: nn.Module) -> None:
        self.matching.after_step()
        self._teacher[0].follow(vision_tower(core))

    def figures(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        return self.matching.figures(reduce)
