"""Whether images come as the image tower takes them: of one size, or as patches of any shape."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from modeling_siglip_ext.image_budget import is_naflex

from ..data.lengths import check_lengths


def check_images(
    model: nn.Module,
    owners: Sequence[Any],
    mini_batch_tokens: int | None = None,
    naflex_lengths: Sequence[int] | None = None,
) -> None:
    """
    Args:
        model: the dual model without wrappers.
        owners: processors, and collators that have one; those without an image processor are passed over.
        mini_batch_tokens: patches of a chunk.
        naflex_lengths: of the training data, in place of the image processor's.

    Raises:
        ValueError: an image processor for NaFlex with a tower of fixed size or the other way round, or one that cuts
            other patches, or none; a chunk that does not hold one image.
    """
    vision: Any = getattr(getattr(model, "config", None), "vision_config", None)
    kind = getattr(vision, "model_type", "")
    naflex = getattr(vision, "naflex", "siglip2" in kind)
    if mini_batch_tokens is not None and not naflex:
        raise ValueError(
            "mini_batch_tokens counts patches of NaFlex, and the image tower is of fixed size: set mini_batch_size"
        )
    if "siglip" not in kind:  # a tower from elsewhere
        return
    for owner in owners:
        processor = getattr(owner, "processor", owner)
        images: Any = getattr(processor, "image_processor", None)
        if images is None:
            continue
        if is_naflex(images) != naflex:
            tower, made = ("NaFlex", "images of one size") if naflex else ("of fixed size", "patches for NaFlex")
            raise ValueError(
                f"the image tower is {tower}, and the processor ({type(images).__name__}) makes {made}: take the "
                "processor that was saved with the model"
            )
        if naflex and images.patch_size != vision.patch_size:
            raise ValueError(
                f"the image tower takes patches of {vision.patch_size} pixels, and the processor cuts "
                f"{images.patch_size}: set image_processor.patch_size"
            )
        if naflex and images.max_num_patches < 1:
            raise ValueError(f"max_num_patches={images.max_num_patches} of the image processor must be at least 1")
        if naflex and mini_batch_tokens is not None:
            check_lengths(naflex_lengths or [images.max_num_patches], mini_batch_tokens)
