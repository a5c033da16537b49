"""Self-distillation: parts of an image must tell the student what the whole tells the teacher (SILC, SigLIP 2).

The pooled vector of each local view is matched with the teacher's of the global view.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .from_teacher import FromTeacher
from .matching import Matching, MatchingSettings
from .teacher import VisionTeacher
from .views import GLOBAL, LOCAL
from .vision_tower import check_tower, given, pooled_width, vision_tower


class Distillation(FromTeacher):
    """The loss of SILC's distillation (arXiv 2310.13355), the mean over images and their local views.

    A batch has `global_view` (B, 3, S, S) of the tower's size, for the teacher, and `local_views` (B, M, 3, s, s) of
    any other, whose positions are interpolated. Neither goes into the contrastive loss.

    Args:
        core: the dual model, whose vision tower learns.
        teacher: of that tower; shared with `Masking`.
        settings: of the head, the center and the teacher's momentum.
        owns_teacher: whether the teacher is kept and saved here; one of those who share it does.

    Raises:
        ValueError: for a tower that it cannot work with, see `check_tower`.
    """

    inputs = (GLOBAL, LOCAL)

    def __init__(self, core: nn.Module, teacher: VisionTeacher, settings: MatchingSettings, owns_teacher: bool = True):
        self.suits(core)
        super().__init__(Matching("distillation", pooled_width(core), settings), teacher, owns_teacher)

    @staticmethod
    def suits(core: nn.Module) -> None:
        check_tower(core, "distillation", other_sizes=True, pooled=True)

    def forward(self, core: nn.Module, outputs: ModelOutput, batch: Mapping[str, Any]) -> torch.Tensor:
        local = given(batch, LOCAL, "distillation")
        images, views = local.shape[:2]
        wanted: torch.Tensor = self._teacher[0].features(outputs, given(batch, GLOBAL, "distillation")).pooler_output
        found = vision_tower(core)(pixel_values=local.flatten(0, 1), interpolate_pos_encoding=True).pooler_output
        weights = wanted.new_full((images,), 1 / images, dtype=torch.promote_types(wanted.dtype, torch.float32))
        return self.matching(found.unflatten(0, (images, views)), wanted, weights)
