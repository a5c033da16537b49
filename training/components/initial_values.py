"""Other initial values for an image tower from scratch, with which its tokens keep their place.

With SigLIP's own values the first blocks of a small tower add nearly the same vector to every token, several times as
long as the token: where it stands is then hardly to be read from it, and short training does not bring that back.
Longer positions keep the place, and blocks that add less at first help; larger patches do harm (study `place`). The
architecture stays the stock one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class InitialValues:
    """
    Args:
        position_std: deviation of the learned positions; None leaves SigLIP's, width^-1/2.
        patch_scale: factor of the patch projection's weights.
        residual_scale: factor of the weights that end each attention and each MLP, and so of what a block adds.

    Raises:
        ValueError: a number that is not positive.
    """

    position_std: float | None = None
    patch_scale: float = 1.0
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("position_std", "patch_scale", "residual_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"initial_values.{name} must be positive, got {value!r}")


@torch.no_grad()
def set_initial_values(model: nn.Module, values: InitialValues) -> None:
    """Change the image tower of an untrained `SiglipExtModel` to these values.

    Raises:
        ValueError: a tower without learned positions, if these are to change.
    """
    tower: Any = model.vision_model
    positions = getattr(tower.embeddings, "position_embedding", None)
    if values.position_std is not None:
        if positions is None:
            raise ValueError("initial_values.position_std needs learned positions, and this tower has sincos2d")
        # drawn with a deviation of width^-1/2
        positions.weight.mul_(values.position_std * positions.weight.shape[1] ** 0.5)
    tower.embeddings.patch_embedding.weight.mul_(values.patch_scale)
    for name, parameter in tower.encoder.named_parameters():
        if name.endswith(("self_attn.out_proj.weight", "mlp.fc2.weight")):
            parameter.mul_(values.residual_scale)
