"""What runs in a worker process: one model, and vectors for batches of one kind."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_siglip_ext.dual_models import load_dual_model
from modeling_siglip_ext.encoding import evaluating, joined, stream_images, stream_texts
from modeling_siglip_ext.image_budget import is_naflex
from modeling_siglip_ext.memory import keep_freed_memory

from .settings import EncoderSettings


# Formats of pictures on the web and of cameras. PIL has dozens more, some of which start other programs (EPS).
FORMATS = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
BLANK = Image.new("RGB", (32, 32))


@dataclass(frozen=True)
class Facts:
    """What the server must know of a model: the width of its vectors, its loss head, and what it was trained with."""

    dimensions: int
    logit_scale: float
    logit_bias: float
    loss_type: str


@dataclass(frozen=True)
class Encoded:
    """Vectors of a batch.

    Args:
        embeds: (items, D) float32 of unit length.
        errors: why an item has none, by its place.
        lengths: tokens of texts before padding, and the most patches that the model makes of an image.
        cut: places of texts that were longer than the text tower.
    """

    embeds: np.ndarray
    errors: dict[int, str]
    lengths: list[int]
    cut: frozenset[int] = frozenset()


class Encoder:
    """A model that is ready to encode."""

    def __init__(self, settings: EncoderSettings):
        self.model, self.processor = load_dual_model(settings)
        parts: Any = self.processor
        self.tokenizer, image_processor = parts.tokenizer, parts.image_processor
        self.budget = settings.budget
        if is_naflex(image_processor):
            self.patches = self.budget.longest(image_processor)
            if self.budget.batch_tokens is None:
                self.budget = replace(self.budget, batch_tokens=settings.batch_images * self.patches)
        else:
            pixels = self.budget.prepare(image_processor, BLANK)["pixel_values"]
            # a tower from elsewhere may be given other sizes than its configuration says, or make no patches
            side = getattr(self.model.config.vision_config, "patch_size", max(pixels.shape[-2:]))
            self.patches = prod(length // side for length in pixels.shape[-2:])

    def facts(self) -> Facts:
        """Computes a vector of each kind: what is wrong with a model shows before it is served.

        Raises:
            ValueError: it gives no numbers.
        """
        image, text = self.encode("image", [BLANK]), self.encode("text", [""])
        for error in (*image.errors.values(), *text.errors.values()):
            raise ValueError(error)
        width = image.embeds.shape[1]
        assert text.embeds.shape == (1, width)
        model: Any = self.model
        bias = getattr(model, "logit_bias", None)
        return Facts(
            width,
            model.logit_scale.float().exp().item(),
            0.0 if bias is None else bias.float().item(),
            getattr(model.config, "loss_type", "sigmoid"),
        )

    def encode(self, kind: str, items: Sequence[Any]) -> Encoded:
        """Vectors of images, as the bytes of their files, or of texts. A broken image is an error of its own."""
        if kind == "image":
            batches = stream_images(self.model, self.processor, items, batch_size=len(items), budget=self.budget)
        else:
            batches = stream_texts(self.model, self.processor, items, batch_size=len(items))
        with evaluating(self.model):
            found = joined(batches)
        embeds, errors = found.embeds.numpy(), found.errors
        for place in np.flatnonzero(~np.isfinite(embeds).all(axis=1)).tolist():
            errors.setdefault(place, "the model gives numbers that are not finite")
        if kind == "image":
            return Encoded(embeds, errors, [self.patches] * len(items))
        tokens = self.tokenizer(list(items), verbose=False)["input_ids"]
        cut = set(found.cut)
        places = frozenset(place for place, text in enumerate(items) if text in cut)
        return Encoded(embeds, errors, [len(ids) for ids in tokens], places)


def prepare_process(threads: int | None, max_pixels: int) -> None:
    """A worker stops when the server stops it or is gone, and not by a signal to the whole group of processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    Image.init()
    for name in [name for name in Image.ID if name not in FORMATS]:
        Image.ID.remove(name)
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # PIL warns beyond this, and refuses beyond twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


LOADED: list[Encoder] = []  # the encoder of this process


def load(settings: EncoderSettings) -> tuple[int, Facts]:
    """Load the model of this process; its number, and what the model is.

    Raises:
        OSError, ValueError: as `load_dual_model`.
    """
    LOADED[:] = [Encoder(settings)]
    return os.getpid(), LOADED[0].facts()


def encode(kind: str, items: Sequence[bytes] | Sequence[str]) -> Encoded:
    """`Encoder.encode` by the encoder of this process."""
    return LOADED[0].encode(kind, items)
