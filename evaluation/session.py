"""A model under evaluation: it is loaded once, its embeddings are kept on disk, its results are written."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.encoding import EncodedBatch, encode_texts, stream_images, stream_texts

from . import data
from .results import write_result


logger = logging.get_logger(__name__)

# first and last row to the embeddings between them, as `store.compute` takes it
Encode = Callable[[int, int], Iterator[EncodedBatch]]


@dataclass
class Session:
    """A model that is being evaluated, and where its embeddings and results go."""

    args: argparse.Namespace
    model: PreTrainedModel
    processor: ProcessorMixin
    weights: str
    started: float

    @classmethod
    def open(cls, args: argparse.Namespace) -> "Session":
        started = time.monotonic()
        if args.model.startswith((".", "/", "~")) and not Path(args.model).is_dir():
            raise FileNotFoundError(f"{args.model} is no folder")
        device = checked_device(args.device or default_device())
        options: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, "revision": args.revision}
        model = AutoModel.from_pretrained(args.model, dtype=getattr(torch, args.dtype), **options).eval()
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
            raise ValueError(f"{args.model} is a {type(model).__name__}, not a model of images and texts")
        processor = AutoProcessor.from_pretrained(args.model, **options)
        if getattr(args, "central_crop", False):
            crop_centre(processor.image_processor)
        return cls(args, model.to(device), processor, store.weights_fingerprint(model), started)

    @property
    def first(self) -> bool:
        """Whether this process writes the results."""
        return store.processes()[0] == 0

    def settings(self, kind: str, **about: Any) -> dict[str, Any]:
        """All that embeddings of this kind depend on."""
        if kind == "image":
            own = json.loads(json.dumps(self.processor.image_processor.to_dict(), default=str))
        else:
            own = tokenizer_settings(self.processor.tokenizer)
        preparation = store.fingerprint({"of": own})
        return {
            "kind": kind,
            "weights": self.weights,
            "dtype": self.args.dtype,
            "preparation": preparation,
            **about,
        }

    def embed_images(self, rows: datasets.Dataset, column: str, **options: Any) -> tuple[torch.Tensor, dict[int, str]]:
        """Embeddings (rows, D), not normalised, through the cache; see `store.compute`."""
        source = data.images(rows, column)

        def encode(first: int, last: int) -> Iterator[EncodedBatch]:
            items = (row[column] for row in source.select(range(first, last)))
            sizes = {"batch_size": self.args.batch_size, "workers": self.args.workers}
            return stream_images(self.model, self.processor, items, normalize=False, **sizes)

        settings = self.settings("image", data=rows._fingerprint, column=column)
        return self._stored(settings, len(rows), encode, what="images", **options)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Normalised embeddings (texts, D) through the cache."""

        def encode(first: int, last: int) -> Iterator[EncodedBatch]:
            return stream_texts(
                self.model, self.processor, texts[first:last], batch_size=self.args.batch_size, normalize=False
            )

        settings = self.settings("text", data=store.fingerprint({"texts": list(texts)}))
        return F.normalize(self._stored(settings, len(texts), encode, what="texts")[0], dim=-1)

    def embed_prompts(self, texts: list[str]) -> torch.Tensor:
        """Normalised embeddings (texts, D) of class prompts, not kept."""
        return encode_texts(self.model, self.processor, texts, return_tensors="pt", progress=False)

    def _stored(
        self, settings: dict, count: int, encode: Callable[[int, int], Iterator[EncodedBatch]], what: str
    ) -> tuple[torch.Tensor, dict[int, str]]:
        folder = Path(self.args.cache_dir) / store.fingerprint(settings)
        store.compute(folder, settings, count, encode, self.model, part_rows=self.args.part_rows, what=what)
        if not self.first:  # it computes no figures
            return torch.empty(0), {}
        embeds, errors, _ = store.read(folder)
        return embeds, errors

    def finish(self, task: str, metrics: dict[str, Any], *, about: dict, settings: dict, name: str) -> Path:
        """Write and print the result."""
        path = write_result(
            Path(self.args.output_dir) / f"{name}.json",
            task,
            metrics,
            model={
                "name": self.args.model,
                "revision": self.args.revision,
                "weights": self.weights,
                "class": type(self.model).__name__,
                "dtype": self.args.dtype,
            },
            dataset=about,
            settings=settings,
            device=str(self.model.device),
            processes=store.processes()[1],
            seconds=round(time.monotonic() - self.started, 1),
        )
        for key, value in metrics.items():
            if isinstance(value, float):
                print(f"{key:40s} {value:.4f}")
        print(path)
        return path


def default_device() -> str:
    """The accelerator of this process, if there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', 0)}"


def checked_device(name: str) -> str:
    """Raises ValueError where torch cannot compute on it, before a large model is loaded."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise ValueError(f"--device {name}: {error}") from error
    return name


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What decides which tokens a text has."""
    if not tokenizer.is_fast:
        return {"class": type(tokenizer).__name__, "name": tokenizer.name_or_path, "vocabulary": len(tokenizer)}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # as the last call left them; ours are always those of the text tower
    return {key: value for key, value in content.items() if key not in ("padding", "truncation")}


def crop_centre(image_processor: Any) -> None:
    """Make it resize to int(size / 0.875) and take the middle, as big_vision does for ImageNet; in place.

    Raises:
        ValueError: a NaFlex processor, which keeps the aspect ratio.
    """
    size = image_processor.size
    if not size or "height" not in size:
        raise ValueError("--central_crop needs a model of one image size")
    image_processor.crop_size = dict(size)
    image_processor.size = {side: int(pixels / 0.875) for side, pixels in dict(size).items()}
    image_processor.do_center_crop = True


def readable(embeds: torch.Tensor, errors: dict[int, str]) -> np.ndarray:
    """Rows whose image could be read; the others are named in one warning.

    Raises:
        ValueError: there are none.
    """
    if errors:
        shown = "; ".join(f"{row}: {message}" for row, message in list(errors.items())[:10])
        logger.warning("%d of %d images cannot be read and do not count: %s", len(errors), len(embeds), shown)
    rows = np.setdiff1d(np.arange(len(embeds)), list(errors))
    if not len(rows):
        raise ValueError("none of the images can be read")
    return rows
