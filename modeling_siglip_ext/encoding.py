"""Embeddings for search: any number of images or texts in, one array of unit vectors out.

Functions over a model and a processor. Images are read and prepared in threads while the tower computes; an image
that cannot be read costs its row and nothing else.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .cpu_products import fast_products
from .image_budget import ImageBudget, collate, fill_batches, patches_of, windows
from .images import UnreadableImageError, load_image
from .inputs import inputs_of
from .texts import text_config, tokenize, warn_of_cut


logger = logging.get_logger(__name__)


@dataclass
class EncodedBatch:
    """Embeddings of consecutive inputs.

    Args:
        embeds: (B, D) float32 on the CPU; NaN where an image could not be read.
        errors: why, by the place in the batch.
        cut: texts that were too long.
    """

    embeds: torch.Tensor
    errors: dict[int, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put `model` in evaluation mode without gradients, and give every submodule its own mode back afterwards.

    A frozen tower kept in evaluation mode while the rest trains stays so, which a plain `model.train()` would undo.
    Linear layers are computed by the library that is the faster one here.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), fast_products():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def moved(inputs: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Prepared inputs where the model is, and in its precision."""
    first = next(model.parameters())
    # weights on the meta device are offloaded, and accelerate moves the inputs
    device = "cpu" if first.device.type == "meta" else first.device
    return {
        name: tensor.to(device, first.dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()
    }


def embed(model: nn.Module, kind: str, inputs: Mapping[str, torch.Tensor], *, normalize: bool = True) -> torch.Tensor:
    """(B, D) float32 on the CPU: what the "image" or "text" tower gives for prepared inputs."""
    pooled = getattr(model, f"get_{kind}_features")(**moved(inputs, model)).pooler_output.float()
    return (F.normalize(pooled, dim=-1) if normalize else pooled).cpu()


def ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int, limit: int) -> Iterator[Any]:
    """`map` in threads, in order, at most `limit` items ahead of what was taken."""
    if workers == 0:
        yield from map(function, items)
        return
    items = iter(items)
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            for item in itertools.islice(items, limit):
                pending.append(pool.submit(function, item))
            while pending:
                result = pending.popleft().result()
                for item in itertools.islice(items, 1):
                    pending.append(pool.submit(function, item))
                yield result
        finally:
            for future in pending:
                future.cancel()


def batches_of(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    items = iter(items)
    while chunk := list(itertools.islice(items, batch_size)):
        yield chunk


def stream_images(
    model: nn.Module,
    processor: Any,
    images: Iterable[Any],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    normalize: bool = True,
    timeout: float | None = 30.0,
    budget: ImageBudget | None = None,
) -> Iterator[EncodedBatch]:
    """Embeddings of images in order, some at a time; arguments as in `encode_images`. The model is in eval mode."""
    image_processor = getattr(processor, "image_processor", processor)
    budget = budget or ImageBudget()
    budget.check(image_processor)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 0:
        raise ValueError(f"workers={workers} must not be negative")

    def prepare(source: Any) -> dict[str, torch.Tensor] | str:
        try:
            return budget.prepare(image_processor, load_image(source, timeout))
        except UnreadableImageError as error:
            return str(error)

    tokens = budget.batch_tokens
    at_once = batch_size if tokens is None else tokens // budget.longest(image_processor)
    prepared = ahead(prepare, images, workers, at_once + 2 * workers)
    width = None
    for stretch in batches_of(prepared, batch_size) if tokens is None else windows(prepared, tokens):
        errors = {place: found for place, found in enumerate(stretch) if isinstance(found, str)}
        good = [place for place in range(len(stretch)) if place not in errors]
        if tokens is None:
            batches = [good] if good else []
        else:
            batches = fill_batches({place: patches_of(stretch[place]) for place in good}, tokens)
        parts = []
        for places in batches:
            inputs = collate([stretch[place] for place in places], cut=tokens is not None)
            parts.append(embed(model, "image", inputs, normalize=normalize))
        width = parts[0].shape[1] if parts else width or image_width(model, image_processor)
        rows = torch.full((len(stretch), width), torch.nan)
        for places, embeds in zip(batches, parts):
            rows[places] = embeds
        yield EncodedBatch(rows, errors)


def image_width(model: nn.Module, image_processor: Any) -> int:
    """The width of image embeddings, tried with a blank image."""
    blank = image_processor(images=[Image.new("RGB", (32, 32))], return_tensors="pt")
    return embed(model, "image", blank).shape[1]


def stream_texts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    texts: Iterable[str],
    *,
    batch_size: int = 64,
    normalize: bool = True,
) -> Iterator[EncodedBatch]:
    """Embeddings of texts, batch after batch; arguments as in `encode_texts`. The model must be in eval mode."""
    tokenizer = cast(PreTrainedTokenizerBase, getattr(processor, "tokenizer", processor))
    start = 0
    for batch in batches_of(texts, batch_size):
        wrong = [place for place, text in enumerate(batch) if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"text {start + wrong[0]} is a {type(batch[wrong[0]]).__name__}, not a string")
        inputs, cut = tokenize(tokenizer, model, batch)
        yield EncodedBatch(embed(model, "text", inputs, normalize=normalize), cut=cut)
        start += len(batch)


def progress_bar(count: int | None, what: str, progress: bool | None = None) -> tqdm:
    """A bar of so many inputs; on terminals only unless `progress` says otherwise."""
    return tqdm(total=count, desc=what, unit=f" {what}", disable=None if progress is None else not progress)


def joined(batches: Iterable[EncodedBatch], bar: tqdm | None = None, *, strict: bool = False) -> EncodedBatch:
    """One batch of several, (0, 0) of none.

    Args:
        bar: moved on with each of them.
        strict: end at the first image that cannot be read.

    Raises:
        UnreadableImageError: there is such an image; only if `strict`.
    """
    embeds: list[torch.Tensor] = []
    errors: dict[int, str] = {}
    cut: list[str] = []
    start = 0
    for batch in batches:
        errors |= {start + place: message for place, message in batch.errors.items()}
        if errors and strict:
            index = min(errors)
            raise UnreadableImageError(f"image {index}: {errors[index]}")
        embeds.append(batch.embeds)
        cut += batch.cut
        start += len(batch.embeds)
        if bar is not None:
            bar.update(len(batch.embeds))
    return EncodedBatch(torch.cat(embeds) if embeds else torch.empty(0, 0), errors, cut)


def collect(
    batches: Iterable[EncodedBatch], count: int | None, what: str, errors: str, progress: bool | None, model: nn.Module
) -> EncodedBatch:
    """All that a model gives, with a bar.

    Raises:
        ValueError: it was given nothing, or with errors="raise" an image that cannot be read.
    """
    with evaluating(model), progress_bar(count, what, progress) as bar:
        found = joined(batches, bar, strict=errors == "raise")
    if not len(found.embeds):
        raise ValueError(f"nothing to encode: there are no {what}")
    return found


def warn_of_unreadable(errors: Mapping[int, str], count: int, fate: str, what: str = "images") -> None:
    """One warning for all inputs that cannot be read.

    Args:
        errors: why, by the place among `count` inputs.
        fate: what becomes of them: "they do not count".
    """
    if errors:
        shown = "; ".join(f"{index}: {message}" for index, message in itertools.islice(errors.items(), 10))
        more = f"; and {len(errors) - 10} more: {list(errors)[10:]}" if len(errors) > 10 else ""
        logger.warning("%d of %d %s cannot be read, %s: %s%s", len(errors), count, what, fate, shown, more)


def check_choices(errors: str, return_tensors: str) -> None:
    for name, value, allowed in (
        ("errors", errors, ("report", "raise")),
        ("return_tensors", return_tensors, ("np", "pt")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; choose one of {', '.join(map(repr, allowed))}")


def check_parts(model: Any, processor: Any, kind: str) -> None:
    """
    Raises:
        TypeError: the model has no tower of this kind, or the processor does not prepare inputs for it.
    """
    if not hasattr(model, f"get_{kind}_features"):
        raise TypeError(f"the first argument is a {type(model).__name__}, not a model of images and texts")
    name = "image_processor" if kind == "image" else "tokenizer"
    part = getattr(processor, name, processor)
    is_tokenizer = isinstance(part, PreTrainedTokenizerBase)
    if not callable(part) or isinstance(part, nn.Module) or is_tokenizer != (kind == "text"):
        raise TypeError(
            f"the second argument is a {type(processor).__name__}, not a processor with {name}: give what "
            "AutoProcessor.from_pretrained loads from the model's folder"
        )


def encode_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Any,
    *,
    column: str | None = None,
    batch_size: int = 32,
    max_num_patches: int | None = None,
    upscale: bool = True,
    batch_tokens: int | None = None,
    workers: int | None = None,
    normalize: bool = True,
    return_tensors: str = "np",
    errors: str = "report",
    progress: bool | None = None,
    timeout: float | None = 30.0,
) -> np.ndarray | torch.Tensor:
    """Embeddings of images.

    The tower computes where the model is and in its precision (`model.to("cuda", torch.bfloat16)`).

    Args:
        model: a dual SigLIP model, ours or stock.
        processor: its processor, or only the image processor.
        images: one or many of what `load_image` takes: a path, URL, base64 text, PIL image, bytes, open file, array or
            tensor, or a list or any other iterable of them. An array of two dimensions is one image, as is one of
            three with 1, 3 or 4 channels; (N, H, W), (N, H, W, C) and (N, C, H, W) are N images. A folder stands for
            its image files in order of their names. Tables, mappings and datasets, streaming or not, give their
            column. One image gives one row.
        column: the images' column, "image" by default.
        batch_size: images in one forward pass.
        max_num_patches: for NaFlex: patches of an image; by default what the image processor says.
        upscale: for NaFlex: False leaves a smaller image its own patches; by default it is enlarged to that many.
        batch_tokens: for NaFlex: patches in one forward pass, padding included, in place of `batch_size`. Images of
            like size are then computed together.
        workers: threads that read and prepare images; by default one a core, at most 8. 0 prepares between batches.
        normalize: to unit length, so that a dot product is a cosine.
        return_tensors: "np" or "pt".
        errors: "report" gives an unreadable image a row of NaN and names all of them in one warning; "raise" stops at
            the first.
        progress: show a bar; by default on terminals only.
        timeout: seconds to wait for a URL; None waits for ever.

    Returns:
        (images, D) float32, a numpy array or a tensor on the CPU.

    Raises:
        ValueError: no images, an unknown column, an array that is no image, settings of NaFlex for another model, or
            with errors="raise" an image that cannot be read.
        TypeError: something that is neither an image nor a collection of images.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_siglip_ext import (
    ...     SiglipExtConfig, SiglipExtImageProcessor, SiglipExtModel, encode_images
    ... )
    >>> tiny = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> config = SiglipExtConfig(vision_config={**tiny, "image_size": 32}, text_config={**tiny, "vocab_size": 100})
    >>> processor = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    >>> encode_images(SiglipExtModel(config), processor, [Image.new("RGB", (60, 40))] * 3).shape
    (3, 32)

    ```"""
    check_choices(errors, return_tensors)
    check_parts(model, processor, "image")
    budget = ImageBudget(max_num_patches, upscale, batch_tokens)
    found = inputs_of(images, column, "image")
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "normalize": normalize}
    batches = stream_images(model, processor, found.items, timeout=timeout, budget=budget, **options)
    encoded = collect(batches, found.count, "images", errors, progress, model)
    warn_of_unreadable(encoded.errors, len(encoded.embeds), "their rows are NaN")
    return encoded.embeds if return_tensors == "pt" else encoded.embeds.numpy()


def encode_texts(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    texts: Any,
    *,
    column: str | None = None,
    batch_size: int = 64,
    normalize: bool = True,
    return_tensors: str = "np",
    progress: bool | None = None,
) -> np.ndarray | torch.Tensor:
    """Embeddings of texts, tokenized to the length of the model's text tower whatever the tokenizer's settings.

    Args:
        model: a dual SigLIP model, ours or stock.
        processor: its processor, or only the tokenizer.
        texts: one string or many: a list, any other iterable, an array or column of strings, or a table, mapping or
            dataset with a column of them.
        column: the texts' column, "text" by default.
        batch_size, normalize, return_tensors, progress: as in `encode_images`.

    Returns:
        (texts, D) float32, a numpy array or a tensor on the CPU.

    Raises:
        ValueError: no texts, or an unknown column.
        TypeError: an input that is no string, with its index, or no collection of strings.
    """
    check_choices("raise", return_tensors)
    check_parts(model, processor, "text")
    found = inputs_of(texts, column, "text")
    batches = stream_texts(model, processor, found.items, batch_size=batch_size, normalize=normalize)
    encoded = collect(batches, found.count, "texts", "raise", progress, model)
    warn_of_cut(encoded.cut, text_config(model).max_position_embeddings)
    return encoded.embeds if return_tensors == "pt" else encoded.embeds.numpy()
