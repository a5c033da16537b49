"""A fixed-resolution tower as a NaFlex one, and back: the same weights, laid out for the other kind of input.

On a square image of the native grid both give the same: a convolution of patches that do not overlap is a linear
layer, and the learned positions are one table in both.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_siglip_ext import SiglipExtVisionConfig
from .embeddings import SiglipExtNaflexEmbeddings, SiglipExtVisionEmbeddings


def to_linear(kernel: torch.Tensor) -> torch.Tensor:
    """A convolution's kernel (D, C, p, p) as the weight (D, p·p·C) of NaFlex' linear layer."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def to_conv(weight: torch.Tensor, channels: int = 3) -> torch.Tensor:
    """The inverse of `to_linear`."""
    side = math.isqrt(weight.shape[1] // channels)
    return weight.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2)


def fields_of_form(
    config: SiglipExtVisionConfig, naflex: bool, *, patch_size: int | None = None, image_size: int | None = None
) -> dict[str, Any]:
    """The fields of a tower's configuration that make it NaFlex, or of fixed resolution, with the same position grid.

    Args:
        patch_size, image_size: other sizes, in pixels; a NaFlex tower has no image size.
    """
    patch_size = patch_size or config.patch_size
    if naflex:
        sizes: dict[str, Any] = {"image_size": None, "num_patches": config.grid_size**2}
    else:
        side = image_size or config.image_size or config.grid_size * patch_size
        sizes = {"image_size": side, "num_patches": None}
    return {"naflex": naflex, "patch_size": patch_size, **sizes}


def change_form(model: PreTrainedModel, naflex: bool) -> None:
    """Make the image tower of a model, or a tower, NaFlex or of fixed resolution; in place.

    Raises:
        ValueError: it is no SigLIP image tower, has positions or a pooling that NaFlex lacks, or lies on several
            devices.
    """
    tower: Any = getattr(model, "vision_model", model)
    config = tower.config
    if not isinstance(config, SiglipExtVisionConfig):
        raise ValueError(f"naflex={naflex} is for SigLIP's image towers, not for a {config.model_type!r} model")
    if config.naflex == naflex:
        return
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ValueError(f"naflex={naflex} changes a model on one device: load it without device_map")
    fields = fields_of_form(config, naflex)
    SiglipExtVisionConfig.from_dict({**config.to_dict(), **fields})  # raises where there is no such tower
    # layers, tower and model may hold the same configuration or copies
    held = [getattr(part, "config", None) for part in model.modules()]
    held.append(getattr(model.config, "vision_config", None))
    for own in held:
        if isinstance(own, SiglipExtVisionConfig):
            for name, value in fields.items():
                setattr(own, name, value)
    tower.embeddings = embeddings_in_form(tower.embeddings, config)


def embeddings_in_form(
    old: SiglipExtVisionEmbeddings | SiglipExtNaflexEmbeddings, config: SiglipExtVisionConfig
) -> nn.Module:
    """The embeddings of the other kind with the same weights, which are not copied but for the patches' kernel."""
    state = old.state_dict(keep_vars=False)
    kernel = state["patch_embedding.weight"]
    changed = to_linear(kernel) if config.naflex else to_conv(kernel, config.num_channels)
    state["patch_embedding.weight"] = changed.contiguous()
    with torch.device("meta"):
        new = SiglipExtNaflexEmbeddings(config) if config.naflex else SiglipExtVisionEmbeddings(config)
    new.load_state_dict(state, assign=True)
    return new.train(old.training)
