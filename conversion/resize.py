"""Brings the tensors whose shape depends on the input size from one configuration to another.

Positions at another resolution follow big_vision's loader, patch kernels FlexiViT (arXiv 2212.08013, section 3.4).
"""

from collections.abc import Callable

import torch
from torch import nn

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig
from modeling_siglip_ext.naflex_form import to_conv, to_linear
from modeling_siglip_ext.positions import resample_positions

from .errors import CheckpointError


AnyConfig = SiglipExtConfig | SiglipExtVisionConfig
Change = Callable[[torch.Tensor], torch.Tensor]
IMAGE_POSITIONS = "vision_model.embeddings.position_embedding.weight"
PATCHES = "vision_model.embeddings.patch_embedding.weight"
TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"


def vision_of(config: AnyConfig) -> SiglipExtVisionConfig:
    """The configuration of the image tower.

    Raises:
        CheckpointError: It is none of SigLIP's.
    """
    vision = config.vision_config if isinstance(config, SiglipExtConfig) else config
    if not isinstance(vision, SiglipExtVisionConfig):
        raise CheckpointError(
            f"the image tower is a {getattr(vision, 'model_type', vision)!r} model, and none of SigLIP's"
        )
    return vision


def resize_kernel(kernel: torch.Tensor, patch_size: int) -> torch.Tensor:
    """A patch kernel (D, C, p, p) for another patch size, so that a patch and the resized patch give the same vector.

    The pseudo-inverse of bilinear resizing (half-pixel centres, no antialiasing), as FlexiViT's `resample_patchemb`.
    Resizing is separable, so the pseudo-inverse is that of one axis, applied to both.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.conversion.resize import resize_kernel
    >>> resize_kernel(torch.randn(8, 3, 16, 16), 14).shape
    torch.Size([8, 3, 14, 14])

    ```"""
    side = kernel.shape[-1]
    axis = torch.eye(side, dtype=torch.float64)[:, None]
    resized = nn.functional.interpolate(axis, size=patch_size, mode="linear", align_corners=False)[:, 0]
    inverse = torch.linalg.pinv(resized)  # (patch_size, side)
    return (inverse @ kernel.double() @ inverse.T).to(kernel.dtype)


def stretch_text_positions(table: torch.Tensor, length: int) -> torch.Tensor:
    """Text positions (L, D) for another length, linear with aligned corners: the first and last rows stay.

    SigLIP reads the text vector at the last position, so that one must keep its meaning.
    """
    rows = table.float().T[None]
    rows = nn.functional.interpolate(rows, size=length, mode="linear", align_corners=True)
    return rows[0].T.to(table.dtype)


def change_patches(source: SiglipExtVisionConfig, target: SiglipExtVisionConfig) -> Change | None:
    if (source.patch_size, source.naflex) == (target.patch_size, target.naflex):
        return None

    def change(weight: torch.Tensor) -> torch.Tensor:
        kernel = to_conv(weight, source.num_channels) if source.naflex else weight
        if source.patch_size != target.patch_size:
            kernel = resize_kernel(kernel, target.patch_size)
        return to_linear(kernel) if target.naflex else kernel

    return change


def text_lengths(source: AnyConfig, target: AnyConfig) -> tuple[int, int] | None:
    """Positions of the text tower before and after, where they differ."""
    old, new = (getattr(config, "text_config", None) for config in (source, target))
    if not isinstance(old, SiglipExtTextConfig) or not isinstance(new, SiglipExtTextConfig):
        return None
    lengths = old.max_position_embeddings, new.max_position_embeddings
    return None if lengths[0] == lengths[1] else lengths


def changes_between(source: AnyConfig, target: AnyConfig) -> dict[str, Change]:
    """What turns the tensors of a model of one configuration into those of the other, by name.

    Raises:
        CheckpointError: The two differ in more than sizes that can be changed.
    """
    changes: dict[str, Change] = {}
    lengths = text_lengths(source, target)
    if lengths is not None:
        changes[TEXT_POSITIONS] = lambda table: stretch_text_positions(table, lengths[1])
    source, target = vision_of(source), vision_of(target)
    if source.position_embedding_type != target.position_embedding_type:
        raise CheckpointError("learned and fixed positions cannot be turned into each other")
    if source.position_embedding_type == "learned" and source.grid_size != target.grid_size:
        changes[IMAGE_POSITIONS] = lambda table: resample_positions(table, target.grid_size)
    patches = change_patches(source, target)
    if patches is not None:
        changes[PATCHES] = patches
    return changes


def describe_changes(source: AnyConfig, target: AnyConfig) -> list[str]:
    """The changes in words, for a report."""
    lines = []
    lengths = text_lengths(source, target)
    if lengths is not None:
        lines.append(f"text positions stretched from {lengths[0]} to {lengths[1]}")
    source, target = vision_of(source), vision_of(target)
    if source.grid_size != target.grid_size:
        lines.append(f"image positions resampled from a grid of {source.grid_size} to {target.grid_size}")
    if source.patch_size != target.patch_size:
        lines.append(f"patch kernel resized from {source.patch_size} to {target.patch_size} pixels")
    if source.naflex != target.naflex:
        lines.append(f"patch embedding turned into a {'linear layer' if target.naflex else 'convolution'}")
    return lines
