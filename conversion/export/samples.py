"""Inputs on which an export is judged, and calibrated: the user's own, or pictures and captions drawn here.

What is drawn is nothing that a model was trained for, but varied: colours, shapes, textures and sizes, and captions of
them. It tells a broken export from a sound one; how much a trained model loses is told by data of its own kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_siglip_ext.configuration_siglip_ext import is_foreign
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.texts import tokenize

from ..errors import CheckpointError
from ..model_folder.processor import has_tokenizer, load_tokenizer
from ..resize import AnyConfig


COUNT = 64
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "stripes")
FRAMES = ("a photo of a {} {}", "ein Bild: {} {}")
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """Prepared inputs, one by one, as the towers take them.

    Args:
        images: without any for a model whose image tower is not exported.
        texts: likewise.
        source: where they are from, for the report.
    """

    images: Sequence[Inputs]
    texts: Sequence[Inputs]
    source: str


def drawn_image(place: int) -> Image.Image:
    """The picture of a place: a shape on a ground of its own texture, of its own size."""
    random = np.random.default_rng(place)
    width, height = (int(side) for side in random.integers(48, 320, size=2))
    ground = random.integers(0, 256, size=(*random.integers(2, 24, size=2), 3), dtype=np.uint8)
    image = Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    colour, shape = COLOURS[place % len(COLOURS)], SHAPES[place // len(COLOURS) % len(SHAPES)]
    box = (width // 5, height // 5, width * 4 // 5, height * 4 // 5)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=colour)
    else:
        for left in range(0, width, 12):
            pen.rectangle((left, 0, left + 5, height), fill=colour)
    return image


def drawn_captions() -> list[str]:
    return [frame.format(colour, shape) for frame, shape, colour in product(FRAMES, SHAPES, COLOURS)]


def prepared_images(folder: Path, images: Iterable[Any]) -> list[Inputs]:
    """
    Raises:
        CheckpointError: the folder has no image processor, or an image cannot be read.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no image processor: {error}") from error
    try:
        return [dict(ImageBudget().prepare(processor, load_image(image))) for image in images]
    except UnreadableImageError as error:
        raise CheckpointError(str(error)) from error


def prepared_texts(folder: Path, config: Any, texts: Sequence[str]) -> list[Inputs]:
    """Texts of a folder with a tokenizer; random ones of a folder without.

    Args:
        config: of the text tower.
    """
    if has_tokenizer(folder):
        model: Any = SimpleNamespace(config=config)  # all that is asked of one
        inputs, _ = tokenize(load_tokenizer(folder, local_only=True), model, texts)
    else:
        inputs = random_texts(config, len(texts))
    if "attention_mask" not in inputs:
        padding = getattr(config, "pad_token_id", None)
        inputs["attention_mask"] = inputs["input_ids"].ne(-1 if padding is None else padding)
    taken = ("input_ids", "attention_mask") if is_foreign(config) else ("input_ids",)
    return [{name: inputs[name][row : row + 1].long() for name in taken} for row in range(len(texts))]


def random_texts(config: Any, count: int) -> Inputs:
    """Token ids, (count, length)."""
    generator = torch.Generator().manual_seed(0)
    shape = count, config.max_position_embeddings
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.long)}


def take_samples(
    folder: Path, config: AnyConfig, images: Iterable[Any] | None = None, texts: Sequence[str] | None = None
) -> Samples:
    """
    Args:
        folder: of the model.
        images: what `load_image` takes; None for pictures drawn here.
        texts: None for captions of those.

    Raises:
        CheckpointError: the folder has no image processor, or an image cannot be read.
    """
    given = [what for what, found in (("images", images), ("texts", texts)) if found is not None]
    pictures = map(drawn_image, range(COUNT)) if images is None else images
    captions = drawn_captions() if texts is None else texts
    own = getattr(config, "text_config", None)
    return Samples(
        prepared_images(folder, pictures),
        [] if own is None else prepared_texts(folder, own, captions),
        f"the user's own {' and '.join(given)}" if given else "drawn by the exporter",
    )
