"""Captions of images, and the places of phrases in them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..encoding import batches_of, evaluating, moved
from ..image_budget import ImageBudget, collate
from ..images import load_image
from ..inputs import inputs_of
from .decoder import CaptionDecoder
from .generation import Sampling, generate, log_likelihoods
from .targets import TargetWriter, padded
from .texts import Box


def image_tokens(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens of images that a decoder reads, (B, N, E), after the image tower's last norm and before its pooling.

    Args:
        model: a dual model or an image tower, ours or stock.
        inputs: what an image processor makes of images.

    Returns:
        The tokens, and for NaFlex which of them are the image's, (B, N) bool.
    """
    inputs = moved(inputs, model)
    outputs = getattr(model, "get_image_features", model)(**inputs)
    mask = inputs.get("pixel_attention_mask")
    return outputs.last_hidden_state, None if mask is None else mask.bool()


def encoded_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable[Image.Image],
    batch_size: int,
    budget: ImageBudget | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, list[tuple[int, int]]]]:
    """For each batch its tokens, their mask, and the widths and heights of the images in pixels.

    Raises:
        ValueError: a budget for another kind of model.
    """
    image_processor = getattr(processor, "image_processor", processor)
    budget = budget or ImageBudget()
    budget.check(image_processor)
    for batch in batches_of(images, batch_size):
        inputs = collate([budget.prepare(image_processor, image) for image in batch])
        yield *image_tokens(model, inputs), [image.size for image in batch]


def _batches(
    model: PreTrainedModel,
    decoder: CaptionDecoder,
    processor: ProcessorMixin,
    images: Iterable[Any],
    batch_size: int,
    budget: ImageBudget,
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, list[tuple[int, int]]]]:
    """`encoded_batches` of whatever `load_image` takes, where the decoder is."""
    device = decoder.output.weight.device
    for tokens, mask, sizes in encoded_batches(model, processor, map(load_image, images), batch_size, budget):
        yield tokens.to(device), None if mask is None else mask.to(device), sizes


def caption(
    model: PreTrainedModel,
    decoder: CaptionDecoder,
    processor: ProcessorMixin,
    images: Any,
    *,
    column: str | None = None,
    batch_size: int = 32,
    max_num_patches: int | None = None,
    upscale: bool = True,
    max_length: int | None = None,
    sampling: Sampling | None = None,
) -> list[str]:
    """A caption of each image.

    Args:
        model: the dual model or image tower that the decoder was trained on.
        decoder: see `load_decoder`.
        processor: of the model.
        images: as for `encode_images`: a list of paths, URLs, PIL images, bytes and arrays, a folder, or a dataset.
        column: the images' column in a dataset, "image" by default.
        batch_size: images in one forward pass.
        max_num_patches, upscale: for NaFlex, as in `encode_images`.
        max_length: of a caption in tokens, prefix included; the decoder's unless given.
        sampling: draw words, image i with `seed + i` whatever the batch; by default the likeliest is taken.

    Raises:
        ValueError: an image that cannot be read, an unknown column, or settings of NaFlex for another model.
    """
    items = inputs_of(images, column, "image").items
    writer, found = _writer(decoder, processor), []
    budget = ImageBudget(max_num_patches, upscale)
    with evaluating(model), evaluating(decoder):
        for tokens, mask, _ in _batches(model, decoder, processor, items, batch_size, budget):
            prompts = [writer.prefixes["caption"]] * len(tokens)
            own = None if sampling is None else replace(sampling, seed=sampling.seed + len(found))
            texts = generate(decoder, tokens, prompts, encoded_mask=mask, max_length=max_length, sampling=own)
            found += [_text(writer.tokenizer, ids) for ids in texts]
    return found


def locate(
    model: PreTrainedModel,
    decoder: CaptionDecoder,
    processor: ProcessorMixin,
    image: Any,
    phrase: str,
    *,
    max_num_patches: int | None = None,
    upscale: bool = True,
) -> Box | None:
    """The box of what a phrase refers to: left, top, right, bottom in pixels of the image, upright.

    None where the decoder wrote no box, as an untrained one does. Arguments and errors as for `locate_all`.
    """
    options: dict[str, Any] = {"max_num_patches": max_num_patches, "upscale": upscale}
    return locate_all(model, decoder, processor, [image], [phrase], **options)[0]


def locate_all(
    model: PreTrainedModel,
    decoder: CaptionDecoder,
    processor: ProcessorMixin,
    images: Sequence[Any],
    phrases: Sequence[str],
    *,
    batch_size: int = 32,
    max_num_patches: int | None = None,
    upscale: bool = True,
) -> list[Box | None]:
    """`locate` for many images, with a phrase for each; an image may come again with another phrase.

    Args:
        model, decoder, processor, batch_size, max_num_patches, upscale: as for `caption`.
        images: paths, URLs, PIL images, bytes or arrays.
        phrases: as many.

    Raises:
        TypeError: one image or phrase in place of a list.
        ValueError: lengths that differ, an image that cannot be read, or settings of NaFlex for another model.
    """
    check_several(images=images, phrases=phrases)
    if len(images) != len(phrases):
        raise ValueError(f"{len(images)} images need as many phrases, got {len(phrases)}")
    writer, form = _writer(decoder, processor), decoder.config.text_format
    found: list[Box | None] = []
    budget = ImageBudget(max_num_patches, upscale)
    with evaluating(model), evaluating(decoder):
        for tokens, mask, sizes in _batches(model, decoder, processor, images, batch_size, budget):
            own = phrases[len(found) : len(found) + len(tokens)]
            prompts = [writer.referring_prompt(phrase) for phrase in own]
            texts = generate(decoder, tokens, prompts, encoded_mask=mask)
            boxes = [form.read_box(_text(writer.tokenizer, ids)) for ids in texts]
            found += [in_pixels(box, size) for box, size in zip(boxes, sizes)]
    return found


def score_captions(
    model: PreTrainedModel,
    decoder: CaptionDecoder,
    processor: ProcessorMixin,
    images: Any,
    captions: Sequence[str],
    *,
    column: str | None = None,
    batch_size: int = 8,
    max_num_patches: int | None = None,
    upscale: bool = True,
) -> torch.Tensor:
    """Log-likelihood of every caption given every image, summed over tokens: CapPa as a zero-shot classifier.

    Args:
        model, decoder, processor, images, column, batch_size, max_num_patches, upscale: as for `caption`.
        captions: the same for all images, one a class.

    Returns:
        (images, captions) float32, on the CPU.

    Raises:
        TypeError: one caption in place of a list.
        ValueError: no captions or no images, and as `caption`.
    """
    check_several(captions=captions)
    if not captions:
        raise ValueError("nothing to score: there are no captions")
    items = inputs_of(images, column, "image").items
    writer = _writer(decoder, processor)
    labels, weights = padded([writer.caption(text) for text in captions], decoder.config)
    rows, budget = [], ImageBudget(max_num_patches, upscale)
    with evaluating(model), evaluating(decoder):
        for tokens, mask, _ in _batches(model, decoder, processor, items, batch_size, budget):
            parts = [
                log_likelihoods(
                    decoder,
                    tokens,
                    some.to(tokens.device).expand(len(tokens), -1, -1),
                    own.to(tokens.device).expand(len(tokens), -1, -1),
                    encoded_mask=mask,
                )
                for some, own in zip(labels.split(64), weights.split(64))
            ]
            rows.append(torch.cat(parts, dim=1).float().cpu())
    if not rows:
        raise ValueError("nothing to score: there are no images")
    return torch.cat(rows)


def check_several(**given: Any) -> None:
    """
    Raises:
        TypeError: one text, whose letters would be taken for many.
    """
    for name, value in given.items():
        if isinstance(value, (str, bytes)):
            raise TypeError(f"{name} must be a list, got {value!r:.60}: put it in brackets")


def in_pixels(box: Box | None, size: tuple[int, int]) -> Box | None:
    """A box of shares in pixels of an image of that width and height."""
    if box is None:
        return None
    (left, top, right, bottom), (width, height) = box, size
    return left * width, top * height, right * width, bottom * height


def _writer(decoder: CaptionDecoder, processor: ProcessorMixin) -> TargetWriter:
    return TargetWriter(processor.tokenizer, decoder.config)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()
