"""What image embeddings depend on, as hashes that need neither the model loaded nor an image decoded."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from safetensors import safe_open
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.utils.hub import cached_file

from modeling_siglip_ext.embedding_store import BESIDE_WEIGHTS
from modeling_siglip_ext.image_budget import ImageBudget, is_naflex


FINGERPRINTED_IMAGES = 1000


def fingerprint(
    model: str,
    pooling: str | None,
    image_processor: BaseImageProcessor,
    rows: Dataset,
    image_column: str,
    budget: ImageBudget | None = None,
) -> dict[str, str | int]:
    """What embeddings depend on: the tower's weights and pooling, the preprocessing, the images.

    Nothing of it loads a model or decodes an image. The images go in by number, and a thousand of them by size and
    file name. Of a NaFlex model it says what it saw of an image.
    """
    preprocessing, seen = _preprocessing(image_processor), {}
    if is_naflex(image_processor):
        budget = budget or ImageBudget()
        seen = {"max_num_patches": budget.longest(image_processor), "upscale": budget.upscale}
        del preprocessing["max_num_patches"]
    return {
        "weights": weights_digest(model),
        "pooling": pooling or "default",
        "preprocessing": _digest([json.dumps(preprocessing, sort_keys=True).encode()]),
        **seen,
        "rows": len(rows),
        "images": images_digest(rows, image_column),
    }


def _preprocessing(image_processor: BaseImageProcessor) -> dict:
    """What changes pixels; class names differ between versions of transformers."""
    values = image_processor.to_dict()
    return {name: value for name, value in values.items() if not name.endswith(("_type", "_class"))}


def weights_digest(model: str, part: str = "vision_") -> str:
    """A hash of the image tower and of its head: of its tensors, read from a model's safetensors files one by one, and
    of what `config.json` says that they do not tell.

    Args:
        model: folder or Hub name.
        part: of the names of the tensors, and of the tower's place in the configuration; where none has it, all is the
            tower's.

    Raises:
        FileNotFoundError: the model has no safetensors file.
    """
    config: dict[str, Any] = PreTrainedConfig.get_config_dict(model)[0]
    tower = config.get(f"{part}config", config)
    beside = [tower.get(name) for name in (*BESIDE_WEIGHTS, "pooling")]
    return _digest(chain([json.dumps(beside).encode()], _tower_bytes(_weight_files(model), part)))


def _weight_files(model: str) -> list[str]:
    quiet = {"_raise_exceptions_for_missing_entries": False}
    single = cached_file(model, "model.safetensors", **quiet)
    if single is not None:
        return [single]
    index = cached_file(model, "model.safetensors.index.json", **quiet)
    if index is None:
        raise FileNotFoundError(f"{model} has no safetensors weights")
    names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return [file for name in sorted(names) if (file := cached_file(model, name)) is not None]  # or it raises


def _tower_bytes(files: list[str], part: str) -> Iterable[bytes]:
    places = {}
    for file in files:
        with safe_open(file, framework="pt") as archive:
            places |= dict.fromkeys(archive.keys(), file)
    tower = [key for key in places if part in key] or list(places)
    for key in sorted(tower):
        with safe_open(places[key], framework="pt") as archive:
            tensor = archive.get_tensor(key)
        yield f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def values_digest(values: Iterable[Sequence[str | int]]) -> str:
    """A hash of lists: of the captions of each row, or of tokens."""
    return _digest(json.dumps(value).encode() for value in values)


def images_digest(rows: Dataset, image_column: str) -> str:
    """A hash of a thousand images by size and file name."""
    raw = rows.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
    return _digest(_image_identity(raw[index][image_column]) for index in evenly(len(raw), FINGERPRINTED_IMAGES))


def evenly(rows: int, most: int) -> list[int]:
    """At most so many places of rows, the first and the last among them, as far from each other as they can be."""
    # in float32 the last of some tens of millions would be rounded to one that is not there
    return torch.linspace(0, max(0, rows - 1), min(most, rows), dtype=torch.float64).round().long().tolist()


def _image_identity(image: dict | None) -> bytes:
    if image is None:
        return b"none"
    content, path = image["bytes"], image["path"]
    if content is not None:
        size = len(content)
    else:  # a file that is not there is left out and counted where the images are read
        size = os.path.getsize(path) if path and os.path.isfile(path) else -1
    return f"{Path(path).name if path else ''} {size}".encode()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
