"""Resized images kept in memory as uint8, for all epochs and all workers.

An image of any shape is kept at every length that is trained with. One copy, resized again to the length of a batch,
would have other pixels than the original's rule gives, and the decoded original may be of any size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import BaseImageProcessor

from modeling_siglip_ext.image_budget import is_naflex

from .pixels import resized_sample, sample_shape


class FixedCache:
    """Images of one size.

    Args:
        count: most images that are put.
        image_processor: resizes them.
    """

    def __init__(self, count: int, image_processor: BaseImageProcessor):
        shape = sample_shape(image_processor)
        assert shape is not None
        self.image_processor = image_processor
        self.pixels = torch.empty(count, *shape, dtype=torch.uint8)

    def put(self, place: int, image: Image) -> None:
        """Places are filled in order."""
        self.pixels[place] = resized_sample(image, self.image_processor)["pixels"]

    def get(self, place: int, max_num_patches: int | None = None) -> dict[str, Any]:
        """As `resized_sample` of that image."""
        return {"pixels": self.pixels[place]}


class PatchCache:
    """Images of any shape, as patches at some lengths, one after another without padding.

    Args:
        count: most images that are put.
        image_processor: resizes and cuts them.
        lengths: values of `max_num_patches`.
        upscale: whether an image of fewer patches is enlarged.
    """

    def __init__(self, count: int, image_processor: BaseImageProcessor, lengths: Sequence[int], upscale: bool = True):
        self.image_processor, self.lengths = image_processor, tuple(dict.fromkeys(lengths))
        self.upscale = upscale
        shapes = [sample_shape(image_processor, length) for length in self.lengths]
        patches, values = sum(shape[0] for shape in shapes if shape), shapes[0][-1] if shapes[0] else 0
        self.patches = torch.empty(count * patches, values, dtype=torch.uint8)  # what is not written takes no memory
        self.spatial_shapes = torch.zeros(count, len(self.lengths), 2, dtype=torch.int64)
        self.starts = torch.zeros(count, len(self.lengths), dtype=torch.int64)
        self.end = 0

    def put(self, place: int, image: Image) -> None:
        """Places are filled in order."""
        for number, length in enumerate(self.lengths):
            sample = resized_sample(image, self.image_processor, length, self.upscale)
            count = int(sample["spatial_shape"].prod())
            self.patches[self.end : self.end + count] = sample["pixels"][:count]
            self.starts[place, number], self.spatial_shapes[place, number] = self.end, sample["spatial_shape"]
            self.end += count

    def get(self, place: int, max_num_patches: int | None = None) -> dict[str, Any]:
        """As `resized_sample` of that image at one of the lengths."""
        shape = sample_shape(self.image_processor, max_num_patches)
        assert shape is not None
        number = self.lengths.index(shape[0])
        spatial_shape, start = self.spatial_shapes[place, number], int(self.starts[place, number])
        count = int(spatial_shape.prod())
        pixels = torch.zeros(shape, dtype=torch.uint8)
        pixels[:count] = self.patches[start : start + count]
        return {"pixels": pixels, "spatial_shape": spatial_shape}


Cache = FixedCache | PatchCache


def new_cache(
    count: int,
    image_processor: BaseImageProcessor | None,
    cache_gib: float,
    lengths: Sequence[int] | None = None,
    upscale: bool = True,
) -> Cache | None:
    """A cache for so many images, if it stays within so many GiB; see `fits_cache`."""
    if image_processor is None or not fits_cache(count, image_processor, cache_gib, lengths):
        return None
    if is_naflex(image_processor):
        return PatchCache(count, image_processor, lengths or [_longest(image_processor)], upscale)
    return FixedCache(count, image_processor)


def fits_cache(
    count: int, image_processor: BaseImageProcessor | None, cache_gib: float, lengths: Sequence[int] | None = None
) -> bool:
    """Whether so many images, resized, fit a cache of so many GiB; not where they have no common size.

    Args:
        lengths: of NaFlex, see `PatchCache`; the image processor's unless given.
    """
    shape = sample_shape(image_processor)
    if shape is None:
        return False
    values = torch.Size(shape).numel()
    if is_naflex(image_processor):
        values = sum(set(lengths or [shape[0]])) * shape[-1]
    return count * values <= cache_gib * 2**30


def _longest(image_processor: Any) -> int:
    return image_processor.max_num_patches
