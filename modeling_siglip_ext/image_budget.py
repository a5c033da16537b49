"""How many patches a NaFlex model sees of each image, and how many images are computed at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F


# Batches that are sorted by size together: the more, the more alike their images are, and the more wait in memory.
WINDOW = 8


@dataclass(frozen=True)
class ImageBudget:
    """How a NaFlex model sees images; the defaults leave all to its image processor, and suit any model.

    Args:
        max_num_patches: of one image; None for what the image processor says.
        upscale: whether an image of fewer patches is enlarged to that many, as in the original. Without, it keeps its
            own: its sides rounded up to whole patches.
        batch_tokens: patches in one forward pass, padding included, in place of a number of images.

    Raises:
        ValueError: less than one patch, or a batch that holds no image.
    """

    max_num_patches: int | None = None
    upscale: bool = True
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_patches", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value} must be a whole number of patches, at least 1")

    def check(self, image_processor: Any) -> None:
        """
        Raises:
            ValueError: the image processor makes images of one size, or an image of it may not fit a batch.
        """
        if self == ImageBudget():
            return
        if not is_naflex(image_processor):
            raise ValueError(
                "max_num_patches, upscale and batch_tokens are for NaFlex models: this one takes images of one size"
            )
        longest = self.longest(image_processor)
        if self.batch_tokens is not None and self.batch_tokens < longest:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} cannot hold an image of max_num_patches={longest}: raise it"
            )

    def longest(self, image_processor: Any) -> int:
        """The most patches that an image can have."""
        return image_processor.max_num_patches if self.max_num_patches is None else self.max_num_patches

    def most_patches(self, image_processor: Any, image: Image.Image) -> int:
        """The most patches that this image can have."""
        longest = self.longest(image_processor)
        if self.upscale:
            return longest
        rows, columns = (-(-side // image_processor.patch_size) for side in (image.height, image.width))
        return min(longest, rows * columns)  # the largest size within as many patches as it has is its own grid

    def prepare(self, image_processor: Any, image: Image.Image) -> dict[str, torch.Tensor]:
        """The model's inputs of one image, (1, ...); patches are padded to what an image may have at most here."""
        options: dict[str, Any] = {}
        if self != ImageBudget():
            options["max_num_patches"] = self.most_patches(image_processor, image)
        return dict(image_processor(images=[image], return_tensors="pt", **options))


def is_naflex(image_processor: Any) -> bool:
    """Whether an image processor, ours or a stock one, makes patches of images of any shape."""
    return "spatial_shapes" in getattr(image_processor, "model_input_names", ())


def patches_of(inputs: Mapping[str, torch.Tensor]) -> int:
    """The patches of one prepared image, without padding."""
    return int(inputs["spatial_shapes"].prod())


def with_length(inputs: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Prepared NaFlex images padded to this many patches, or cut where only padding lies beyond."""
    more = length - inputs["pixel_values"].shape[1]
    beside = {"pixel_values": (0, 0, 0, more), "pixel_attention_mask": (0, more)}
    return {name: F.pad(tensor, beside[name]) if name in beside else tensor for name, tensor in inputs.items()}


def collate(prepared: Sequence[Mapping[str, torch.Tensor]], *, cut: bool = False) -> dict[str, torch.Tensor]:
    """One batch of prepared images, padded to the longest; `cut` drops the padding that all of them have."""
    if "spatial_shapes" in prepared[0]:
        longest = max(patches_of(one) if cut else one["pixel_values"].shape[1] for one in prepared)
        prepared = [with_length(one, longest) for one in prepared]
    return {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}


def fill_batches(lengths: Mapping[int, int], batch_tokens: int) -> list[list[int]]:
    """Images of like size together, in batches of at most `batch_tokens` with the padding.

    Args:
        lengths: patches of each image, by its place.

    Returns:
        Places, from the smallest images to the largest; an image that is larger than a batch is one of its own.

    Example:

    ```python
    >>> fill_batches({0: 10, 1: 4, 2: 9, 3: 4, 4: 4}, batch_tokens=20)
    [[1, 3, 4], [2, 0]]

    ```"""
    batches: list[list[int]] = []
    for place in sorted(lengths, key=lambda place: (lengths[place], place)):
        if not batches or (len(batches[-1]) + 1) * lengths[place] > batch_tokens:
            batches.append([])
        batches[-1].append(place)
    return batches


def windows(prepared: Iterable[Any], batch_tokens: int) -> Iterator[list[Any]]:
    """Prepared images, or reasons why there are none, in stretches of some batches' patches, to be sorted within."""
    window: list[Any] = []
    tokens = 0
    for one in prepared:
        window.append(one)
        tokens += 1 if isinstance(one, str) else patches_of(one)
        if tokens >= WINDOW * batch_tokens:
            yield window
            window, tokens = [], 0
    if window:
        yield window
