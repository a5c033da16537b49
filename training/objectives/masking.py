"""Masked prediction: what the student says of hidden patches must match what the teacher sees there.

This is the loss of iBOT, as TIPS and SigLIP 2 use it.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .from_teacher import FromTeacher
from .masks import HIDDEN
from .matching import Matching, MatchingSettings
from .teacher import VisionTeacher
from .views import GLOBAL
from .vision_tower import check_tower, given, patch_embedding, vision_tower


class Masking(FromTeacher):
    """The loss of iBOT (arXiv 2111.07832): the mean over an image's hidden patches, then over images.

    A batch has `global_view` (B, 3, S, S) of the tower's size, which the teacher sees whole, and `hidden_patches`
    (B, H), the places of as many patches of each image.
    Hidden patches are replaced by one learned token after the patch projection and before the positions are added;
    features are the tokens after the last norm. The center is the mean over hidden patches, as in DINOv2.

    Args:
        core, teacher, settings, owns_teacher: as for `Distillation`.

    Raises:
        ValueError: for a tower that it cannot work with, see `check_tower`.
    """

    inputs = (GLOBAL, HIDDEN)

    def __init__(
        self, core: nn.Module, teacher: VisionTeacher, settings: MatchingSettings, owns_teacher: bool = False
    ):
        self.suits(core)
        width = patch_embedding(core).out_channels
        super().__init__(Matching("masking", width, settings), teacher, owns_teacher)
        self.mask_token = nn.Parameter(torch.zeros(1, width))

    @staticmethod
    def suits(core: nn.Module) -> None:
        check_tower(core, "masking")

    def forward(self, core: nn.Module, outputs: ModelOutput, batch: Mapping[str, Any]) -> torch.Tensor:
        views, hidden = (given(batch, name, "masking") for name in self.inputs)
        wanted = self._teacher[0].features(outputs, views).last_hidden_state
        with self._hidden(patch_embedding(core), hidden):
            found = vision_tower(core)(pixel_values=views).last_hidden_state
        # A class token may stand before the patches.
        places = hidden[..., None] + (found.shape[1] - self._patches(core, views))
        student, teacher = (
            tokens.gather(1, places.expand(-1, -1, tokens.shape[-1])).flatten(0, 1) for tokens in (found, wanted)
        )
        dtype = torch.promote_types(found.dtype, torch.float32)
        weights = found.new_full((hidden.numel(),), 1 / hidden.numel(), dtype=dtype)
        return self.matching(student[:, None], teacher, weights)

    @staticmethod
    def _patches(core: nn.Module, views: torch.Tensor) -> int:
        height, width = patch_embedding(core).stride
        return (views.shape[-2] // int(height)) * (views.shape[-1] // int(width))

    @contextmanager
    def _hidden(self, embedding: nn.Conv2d, places: torch.Tensor) -> Generator[None]:
        def replace(module: nn.Module, inputs: Any, patches: torch.Tensor) -> torch.Tensor:
            hidden = torch.zeros_like(patches[:, 0], dtype=torch.bool).flatten(1).scatter(1, places, True)
            hidden = hidden.view(len(patches), 1, *patches.shape[-2:])
            return torch.where(hidden, self.mask_token.to(patches.dtype)[..., None, None], patches)

        handle = embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
