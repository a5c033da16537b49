"""Whether images come as the image tower takes them: of one size, or as patches of any shape."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from modeling_siglip_ext.image_budget import is_naflex

from ..arguments import SiglipExtTrainingArguments
from ..data.lengths import check_lengths


def check_images(
    model: nn.Module,
    owners: Sequence[Any],
    args: SiglipExtTrainingArguments,
    naflex_lengths: Sequence[int] | None = None,
) -> None:
    """
    Args:
        model: the dual model without wrappers.
        owners: processors, and collators that have one; those without an image processor are passed over.
        args: whose `mini_batch_tokens` and `halve_batches_at` are patches.
        naflex_lengths: of the training data, in place of the image processor's.

    Raises:
        ValueError: an image processor for NaFlex with a tower of fixed size or the other way round, or one that cuts
            other patches, or none; a chunk that does not hold one image; or no image is as long as `halve_batches_at`.
    """
    vision: Any = getattr(getattr(model, "config", None), "vision_config", None)
    kind = getattr(vision, "model_type", "")
    naflex = getattr(vision, "naflex", "siglip2" in kind)
    if args.mini_batch_tokens is not None and not naflex:
        raise ValueError(
            "mini_batch_tokens counts patches of NaFlex, and the image tower is of fixed size: set mini_batch_size"
        )
    if args.halve_batches_at is not None and not naflex:
        raise ValueError("halve_batches_at counts patches of NaFlex, and the image tower is of fixed size: unset it")
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
        if not naflex:
            continue
        if images.patch_size != vision.patch_size:
            raise ValueError(
                f"the image tower takes patches of {vision.patch_size} pixels, and the processor cuts "
                f"{images.patch_size}: set image_processor.patch_size"
            )
        if images.max_num_patches < 1:
            raise ValueError(f"max_num_patches={images.max_num_patches} of the image processor must be at least 1")
        lengths = naflex_lengths or [images.max_num_patches]
        if args.mini_batch_tokens is not None:
            check_lengths(lengths, args.mini_batch_tokens)
        if args.halve_batches_at is not None and max(lengths) < args.halve_batches_at:
            raise ValueError(
                f"halve_batches_at={args.halve_batches_at} has no effect: images have at most {max(lengths)} patches"
            )
