"""What self-supervised objectives need to know of a vision tower, ours or a stock one; what they cannot train."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


def vision_tower(core: nn.Module) -> PreTrainedModel:
    return cast(PreTrainedModel, core.vision_model)


def patch_embedding(core: nn.Module) -> nn.Conv2d:
    """The convolution that makes patches of an image."""
    return cast(nn.Conv2d, vision_tower(core).get_submodule("embeddings.patch_embedding"))


def pooled_width(core: nn.Module) -> int:
    """Width of the vector that the tower gives for an image, before normalization."""
    config: Any = vision_tower(core).config
    return getattr(config, "projection_size", None) or config.hidden_size


def check_tower(core: nn.Module, objective: str, other_sizes: bool = False, pooled: bool = False) -> None:
    """
    Args:
        other_sizes: it must take images of other sizes, too.
        pooled: it must give a vector for an image.

    Raises:
        ValueError: for a NaFlex tower, one that is no SigLIP tower, a locked one, or one that lacks what is needed.
    """
    tower = vision_tower(core)
    embeddings = getattr(tower, "embeddings", None)
    patches = getattr(embeddings, "patch_embedding", None)
    if isinstance(patches, nn.Linear):
        raise ValueError(f"{objective} is not for NaFlex towers (SigLIP 2 leaves it out there): leave it out")
    if not isinstance(patches, nn.Conv2d) or getattr(core, "vision_adapter", None) is not None:
        raise ValueError(f"{objective} needs a SigLIP vision tower, got {type(tower).__name__}")
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError(f"{objective} has nothing to train: the vision tower is locked; unlock it, or leave this out")
    if other_sizes and not hasattr(embeddings, "position_embedding"):
        raise ValueError(f"{objective} needs learned positions, to interpolate them; this tower has sincos2d")
    if pooled and getattr(tower, "head", None) is None:
        raise ValueError(f"{objective} needs a pooled vector of an image, which this tower does not give")


def given(batch: Mapping[str, Any], name: str, objective: str) -> torch.Tensor:
    """
    Raises:
        ValueError: the batch does not have it.
    """
    if name not in batch:
        raise ValueError(f"{objective} needs {name} in the batch: let an ExtendedCollator draw it")
    return batch[name]
