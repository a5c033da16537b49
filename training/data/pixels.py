"""Pixels on their way to a batch: resized to uint8 in the worker, normalized where they are used."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL.Image import Image
from transformers import BaseImageProcessor


def fixed_size(image_processor: BaseImageProcessor | None) -> tuple[int, int] | None:
    """Height and width that every image is resized to; None where each image has its own, as in NaFlex."""
    size = getattr(image_processor, "size", None) or {}
    return (size["height"], size["width"]) if "height" in size and "width" in size else None


def resized_uint8(images: Sequence[Image], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Resize RGB images as the image processor does, but neither rescale nor normalize: uint8 (B, 3, H, W)."""
    pixels = image_processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    return pixels if pixels.dtype == torch.uint8 else pixels.float().round().clamp(0, 255).to(torch.uint8)


def normalized(pixels: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """The rest of the image processor's work on a whole batch: uint8 (..., 3, H, W) → float32 of the same shape."""
    pixels = pixels.to(torch.float32, copy=True)  # then in place: a chunk of images is large
    if image_processor.do_rescale:
        pixels *= image_processor.rescale_factor
    if image_processor.do_normalize:
        mean, std = (
            by_channel(tuple(numbers), pixels.device)
            for numbers in (image_processor.image_mean, image_processor.image_std)
        )
        pixels.sub_(mean).div_(std)
    return pixels


@lru_cache  # bringing them to the device at every step would wait for it
def by_channel(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Numbers, one a channel, as a tensor that goes with images (..., C, H, W)."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device).view(-1, 1, 1)
