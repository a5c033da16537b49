"""Batches of pixels and tokens, from the examples of the datasets here or from bare rows."""

from collections.abc import Collection
from typing import Any, Protocol

import torch
from PIL.Image import Image
from transformers import ProcessorMixin

from modeling_siglip_ext.images import load_image
from modeling_siglip_ext.texts import NO_LENGTH, check_characters

from .folder import check_columns
from .pair_ids import ids_of_texts, ids_of_values
from .pixels import IMAGE_INPUTS, batch_of_samples, normalized, resized_uint8
from .reference_embeddings import REFERENCE
from .samples import as_captions


class ImageTextCollator:
    """Batches of `pixel_values`, `input_ids` and whatever else the processor makes of text, with `return_loss=True`.

    Takes the examples of `ImageTextDataset`, or the bare rows of a (streaming) `datasets` dataset; of several
    captions in such a row one is drawn with torch's random state.

    Args:
        processor: image processor and tokenizer.
        max_length: tokens per text; the tokenizer's `model_max_length` unless given. Give the text tower's
            `max_position_embeddings`: SigLIP towers take full-length texts.
        image_column, caption_column: keys of bare rows.
        pair_column: key of bare rows: rows with equal values belong together, images and texts of all of them. The
            datasets here have their own.
        equal_captions_match: rows whose captions are the same tokens belong together.
        uint8: leave images as uint8, a quarter of the memory; `SiglipExtTrainer` normalizes them on the device, with
            `mini_batch_size` chunk by chunk.

    Raises:
        ValueError: if no length is known, or (on call) if a row lacks a column or a caption.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        uint8: bool = False,
        pair_column: str | None = None,
        equal_captions_match: bool = False,
    ):
        if pair_column is not None and equal_captions_match:
            raise ValueError("pair_column and equal_captions_match both say what belongs together: give one of them")
        self.pair_column = pair_column
        self.equal_captions_match = equal_captions_match
        self.processor = processor
        self.uint8 = uint8
        self.max_length = max_length or processor.tokenizer.model_max_length
        if self.max_length > NO_LENGTH:
            raise ValueError("the tokenizer has no model_max_length: pass max_length (the text tower's positions)")
        self.image_column = image_column
        self.caption_column = caption_column

    def __call__(self, examples: list[dict]) -> dict:
        """Returns pixel_values float32 or uint8 (B, 3, H, W), or for NaFlex (B, L, p·p·3) with pixel_attention_mask
        (B, L) and spatial_shapes (B, 2); input_ids int64 (B, max_length), return_loss True, pair_ids int64 (B,)
        where rows can belong together, and reference_embeds float32 (B, 2, D) where a reference has judged them."""
        captions = [self._caption(example) for example in examples]
        check_characters(captions)
        batch = dict(
            self.processor.tokenizer(
                captions, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
            )
        )
        if "embedding" in examples[0]:  # of `EmbeddingTextDataset`; the stand-in for the image tower passes them on
            batch["pixel_values"] = torch.stack([example["embedding"] for example in examples]).float()
        else:
            batch |= self._images(examples)
        if self.equal_captions_match:
            batch["pair_ids"] = ids_of_texts(batch["input_ids"])
        elif self.pair_column is not None or "pair" in examples[0]:
            values = [self._column(example, "pair", "pair_column", self.pair_column or "pair") for example in examples]
            batch["pair_ids"] = ids_of_values(values)
        if REFERENCE in examples[0]:
            batch[REFERENCE] = torch.stack([example[REFERENCE] for example in examples])
        batch["return_loss"] = True
        return batch

    def _images(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        image_processor = self.processor.image_processor
        if "pixels" in examples[0]:
            inputs = batch_of_samples(examples)
        else:
            images = [self._image(example) for example in examples]
            if not self.uint8:
                found = image_processor(images, return_tensors="pt")
                return {name: found[name] for name in IMAGE_INPUTS if name in found}
            inputs = resized_uint8(images, image_processor)
        if not self.uint8:
            mask = inputs.get("pixel_attention_mask")
            inputs["pixel_values"] = normalized(inputs["pixel_values"], image_processor, mask)
        return inputs

    def _column(self, example: dict, plain: str, setting: str, column: str) -> Any:
        if column not in example and plain in example:  # of the datasets here, whatever their columns are called
            return example[plain]
        check_columns(example, setting, [column])
        return example[column]

    def _image(self, example: dict) -> Image:
        return load_image(self._column(example, "image", "image_column", self.image_column))

    def captions(self, example: dict) -> Any:
        """The caption of an example of the datasets here, or the captions of a bare row, as `as_captions` takes them.

        Raises:
            ValueError: it has none.
        """
        return self._column(example, "caption", "caption_column", self.caption_column)

    def _caption(self, example: dict) -> str:
        value = self.captions(example)
        if isinstance(value, str):
            return value
        captions = as_captions(value)
        return captions[int(torch.randint(len(captions), ()))]


class Addition(Protocol):
    """Makes further inputs of the samples of a batch."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Their names."""
        ...

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]: ...


class Collator(Protocol):
    """Makes a batch of examples."""

    processor: ProcessorMixin

    def __call__(self, examples: list[dict]) -> dict: ...


class ExtendedCollator:
    """Another collator's batches with more in them, e.g. views for self-distillation.

    Args:
        collator: makes the batch.
        additions: make further inputs of the same samples; uint8 images among them are normalized by
            `SiglipExtTrainer`.
    """

    def __init__(self, collator: Collator, *additions: Addition):
        self.collator, self.additions = collator, additions
        self.processor = collator.processor
        # In shared memory, so that dataloader workers see it change.
        self._wanted = torch.ones(len(additions), dtype=torch.bool).share_memory_()

    @property
    def for_evaluation(self) -> Any:
        """What makes the batches that are evaluated: of the contrastive loss alone, which needs none of the rest."""
        return getattr(self.collator, "for_evaluation", self.collator)

    def want(self, inputs: Collection[str]) -> None:
        """Make only those additions, from now on, of which one of these inputs is made."""
        for number, addition in enumerate(self.additions):
            self._wanted[number] = any(name in inputs for name in addition.inputs)

    def __call__(self, examples: list[dict]) -> dict:
        batch = self.collator(examples)
        for addition, wanted in zip(self.additions, self._wanted.tolist()):
            if wanted:
                batch |= addition(examples)
        return batch
