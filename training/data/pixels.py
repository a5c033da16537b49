"""Pixels on their way to a batch: resized to uint8 in the worker, normalized where they are used.

Images of one size are (3, H, W). Those of any shape are patches (L, p·p·3), as a NaFlex tower takes them, with their
rows and columns; the resizing is the image processor's in both cases.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL.Image import Image
from transformers import BaseImageProcessor

from modeling_siglip_ext.image_budget import ImageBudget, is_naflex, with_length
from modeling_siglip_ext.naflex import valid_patches


IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def sample_shape(
    image_processor: BaseImageProcessor | None, max_num_patches: int | None = None
) -> tuple[int, ...] | None:
    """The shape of every image's `pixels`: (3, H, W), or of patches (L, p·p·3); None where each has its own."""
    if is_naflex(image_processor):
        settings: Any = image_processor
        return max_num_patches or settings.max_num_patches, 3 * settings.patch_size**2
    size = getattr(image_processor, "size", None) or {}
    return (3, size["height"], size["width"]) if "height" in size and "width" in size else None


def resized_uint8(
    images: Sequence[Image], image_processor: BaseImageProcessor, max_num_patches: int | None = None
) -> dict[str, torch.Tensor]:
    """Resize RGB images as the image processor does, but neither rescale nor normalize.

    Args:
        max_num_patches: of NaFlex, in place of the image processor's.

    Returns:
        pixel_values: uint8 (B, 3, H, W); or uint8 (B, L, p·p·3) with pixel_attention_mask and spatial_shapes.
    """
    options: dict[str, Any] = {} if max_num_patches is None else {"max_num_patches": max_num_patches}
    found = image_processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt", **options)
    inputs = {name: found[name] for name in IMAGE_INPUTS if name in found}
    pixels = inputs["pixel_values"]
    if pixels.dtype != torch.uint8:
        inputs["pixel_values"] = pixels.float().round().clamp(0, 255).to(torch.uint8)
    return inputs


def resized_sample(
    image: Image,
    image_processor: BaseImageProcessor | None,
    max_num_patches: int | None = None,
    upscale: bool = True,
) -> dict[str, Any]:
    """What a sample has of its image: `pixels` and for NaFlex `spatial_shape`, or `image` where nothing resizes it.

    Args:
        max_num_patches, upscale: of NaFlex, see `ImageBudget`. Patches are padded to that many for any image.
    """
    if image_processor is None:
        return {"image": image}
    if not upscale:
        budget = ImageBudget(max_num_patches, upscale)
        inputs = resized_uint8([image], image_processor, budget.most_patches(image_processor, image))
        inputs = with_length(inputs, budget.longest(image_processor))
    else:
        inputs = resized_uint8([image], image_processor, max_num_patches)
    sample = {"pixels": inputs["pixel_values"][0]}
    return sample | ({"spatial_shape": inputs["spatial_shapes"][0]} if "spatial_shapes" in inputs else {})


def stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of one shape as one tensor (B, ...), without a copy where they are the rows of one already."""
    whole = images[0]._base
    if whole is not None and whole.shape == (len(images), *images[0].shape):
        step = whole.stride(0) * whole.element_size()
        if all(image.data_ptr() == whole.data_ptr() + row * step for row, image in enumerate(images)):
            return whole
    return torch.stack(images)


def batch_of_samples(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The image inputs of samples of `resized_sample`, as `resized_uint8` gives them."""
    pixels = stacked([sample["pixels"] for sample in samples])
    if "spatial_shape" not in samples[0]:
        return {"pixel_values": pixels}
    shapes = torch.stack([sample["spatial_shape"] for sample in samples])
    mask = valid_patches(shapes, pixels.shape[1]).to(torch.int32)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def normalized(pixels: torch.Tensor, image_processor: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The rest of the image processor's work on a whole batch: uint8 to float32 of the same shape.

    Args:
        pixels: (..., 3, H, W), or patches (B, L, p·p·3) where the image processor makes such.
        mask: (B, L), which patches are an image's; the others become 0, as the image processor leaves them.
    """
    pixels = pixels.to(torch.float32, copy=True)  # then in place: a chunk of images is large
    if image_processor.do_rescale:
        pixels *= image_processor.rescale_factor
    if image_processor.do_normalize:
        mean, std = (
            on_device(tuple(numbers), pixels.device)
            for numbers in (image_processor.image_mean, image_processor.image_std)
        )
        if is_naflex(image_processor):
            pixels.unflatten(-1, (-1, len(mean))).sub_(mean).div_(std)
        else:
            pixels.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    return pixels if mask is None else pixels.masked_fill_(mask[..., None] == 0, 0)


@lru_cache  # bringing them to the device at every step would wait for it
def on_device(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)
