"""Other views of an image for self-distillation: one large crop, and small ones, as DINO cuts and recolors them.

All that is random follows from the sample's key, (seed, epoch, index): the views are the same for any number of
processes and workers, and after a resume. Only these views are flipped and cropped; captions say "left", and boxes
have places. PIL does the work, as in DINO's own code.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Image as PILImage
from PIL.Image import Resampling

from modeling_siglip_ext.images import load_image

from ..data.samples import key_number


GLOBAL, LOCAL = "global_view", "local_views"
"""Names in the batch: uint8 (B, 3, S, S), and (B, M, 3, s, s)."""


@dataclass(frozen=True)
class ViewSettings:
    """Crop areas of SILC (arXiv 2310.13355), the rest of DINO.

    Sizes are in pixels, areas in shares of the image, `jitter` is the strength in brightness, contrast, saturation
    and hue; flips, jitter, gray and blurs happen with the probabilities given.

    Raises:
        ValueError: naming the setting that is out of range.
    """

    global_size: int
    local_size: int = 96
    local_views: int = 8
    global_area: tuple[float, float] = (0.4, 1.0)
    local_area: tuple[float, float] = (0.05, 0.4)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jittered: float = 0.8
    gray: float = 0.2
    global_blur: float = 1.0
    local_blur: float = 0.5
    blur_radius: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        if self.local_views < 0:
            raise ValueError(f"local_views must not be negative, got {self.local_views}")
        for name in ("global_size", "local_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("global_area", "local_area"):
            least, most = getattr(self, name)
            if not 0 < least <= most <= 1:
                raise ValueError(f"{name} must be two shares of the image in order, got {getattr(self, name)}")
        for name, floor in (("aspect", 1e-3), ("blur_radius", 0)):
            least, most = getattr(self, name)
            if not floor <= least <= most < float("inf"):
                raise ValueError(f"{name} must be two numbers in order, from {floor} on, got {getattr(self, name)}")
        if not all(0 <= strength < float("inf") for strength in self.jitter):
            raise ValueError(f"jitter must not be negative, got {self.jitter}")
        for name in ("flip", "jittered", "gray", "global_blur", "local_blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    @classmethod
    def for_tower(cls, config: Any, **changes: Any) -> "ViewSettings":
        """Those of a vision tower's configuration: views of whole patches, local ones of 96 px or half an image.

        Raises:
            ValueError: naming the setting that is out of range; views smaller than a patch.
        """
        size, patch = config.image_size, config.patch_size
        local = max(1, round(min(96, size / 2) / patch)) * patch
        settings = cls(**{"global_size": size, "local_size": local, **changes})
        if settings.local_size < patch:
            raise ValueError(f"local_size must be at least a patch of {patch} pixels, got {settings.local_size}")
        return settings


def as_image(image: torch.Tensor | PILImage) -> PILImage:
    """RGB, from uint8 (3, H, W) or anything PIL has opened."""
    if isinstance(image, torch.Tensor):
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return load_image(image)


def draw_views(image: torch.Tensor | PILImage, key: str, settings: ViewSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The views of an image for a key: uint8 (3, S, S) and (M, 3, s, s)."""
    source, draw = as_image(image), random.Random(key_number(f"{key}/views"))
    whole = _view(source, draw, settings, settings.global_size, settings.global_area, settings.global_blur)
    parts = torch.empty(settings.local_views, 3, settings.local_size, settings.local_size, dtype=torch.uint8)
    for part in parts:
        view = _view(source, draw, settings, settings.local_size, settings.local_area, settings.local_blur)
        part.copy_(_tensor(view))
    return _tensor(whole), parts


class Views:
    """The views of the samples of a batch, for `ExtendedCollator`."""

    inputs = (GLOBAL, LOCAL)

    def __init__(self, settings: ViewSettings):
        self.settings = settings

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: for samples without an image of their own or without a key.
        """
        drawn = [draw_views(image_of(example), key_of(example), self.settings) for example in examples]
        views = {GLOBAL: torch.stack([whole for whole, _ in drawn])}
        if self.settings.local_views:
            views[LOCAL] = torch.stack([parts for _, parts in drawn])
        return views


def image_of(example: dict) -> torch.Tensor | PILImage:
    found = example.get("pixels", example.get("image"))
    if found is None:
        raise ValueError("views of an image need the image: train from images, not from precomputed embeddings")
    return found


def key_of(example: dict) -> str:
    if "key" not in example:
        raise ValueError("views are drawn from the key of a sample: pass ImageTextDataset or ImageTextStream")
    return example["key"]


def crop_box(
    size: tuple[int, int], draw: random.Random, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a random crop: uniform in area, log-uniform in aspect.

    What does not fit after ten draws becomes the largest crop in the middle of an aspect allowed.
    """
    width, height = size
    for _ in range(10):
        pixels = width * height * draw.uniform(*area)
        ratio = math.exp(draw.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = max(1, round(math.sqrt(pixels * ratio))), max(1, round(math.sqrt(pixels / ratio)))
        if w <= width and h <= height:
            left, upper = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, upper, left + w, upper + h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _view(
    image: PILImage,
    draw: random.Random,
    settings: ViewSettings,
    size: int,
    area: tuple[float, float],
    blur: float,
) -> PILImage:
    view = image.crop(crop_box(image.size, draw, area, settings.aspect)).resize((size, size), Resampling.BICUBIC)
    if draw.random() < settings.flip:
        view = ImageOps.mirror(view)
    if draw.random() < settings.jittered:
        view = _jittered(view, draw, settings.jitter)
    if draw.random() < settings.gray:
        view = view.convert("L").convert("RGB")
    if draw.random() < blur:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(*settings.blur_radius)))
    return view


def _jittered(image: PILImage, draw: random.Random, strengths: tuple[float, float, float, float]) -> PILImage:
    """Brightness, contrast, saturation and hue changed by random amounts, in random order."""
    *factors, hue = strengths
    changes: list[tuple[Callable[[PILImage], Any] | None, float]] = [
        (kind, draw.uniform(max(0.0, 1 - strength), 1 + strength))
        for kind, strength in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors)
    ]
    changes.append((None, draw.uniform(-hue, hue)))
    draw.shuffle(changes)
    for kind, amount in changes:
        image = _turned(image, amount) if kind is None else kind(image).enhance(amount)
    return image


def _turned(image: PILImage, turn: float) -> PILImage:
    """The hues moved by a share of the color circle."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(round(turn * 255) % 256)
    return Image.fromarray(pixels, "HSV").convert("RGB")


def _tensor(image: PILImage) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
