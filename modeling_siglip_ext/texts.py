"""Texts to the inputs of a model's text tower, at the length that this tower was trained with."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The length that the zero-shot pipeline and the processors of transformers pad texts to.
STOCK_TEXT_LENGTH = 64
# A tokenizer without a length of its own reports 1e30; no text tower is as long as this.
NO_LENGTH = 1_000_000


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the text tower of a dual model."""
    return getattr(model.config, "text_config", model.config)


def pads_to_full_length(model: PreTrainedModel) -> bool:
    """Whether the text tower attends to its padding, as SigLIP's do; towers from elsewhere take a mask."""
    return "siglip" in text_config(model).model_type


def tokenize(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Arguments of `get_text_features`, (texts, length) int64, and the texts that were too long and were cut.

    SigLIP towers get every text at full length and no mask, whatever the tokenizer's own settings. Cut texts keep
    their EOS token.
    """
    length = text_config(model).max_position_embeddings
    if pads_to_full_length(model):
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        inputs = {"input_ids": tokens["input_ids"]}
        # the last place is EOS in a text that was cut, and padding, which may be EOS too, in one with room to spare
        full = tokens["input_ids"][:, max(0, length - 2)] != tokenizer.pad_token_id
    else:
        length = min(length, tokenizer.model_max_length)
        inputs = dict(tokenizer(list(texts), padding=True, max_length=length, truncation=True, return_tensors="pt"))
        full = torch.full((len(texts),), inputs["input_ids"].shape[1] >= length)
    suspects = [text for text, filled in zip(texts, full.tolist()) if filled]
    return inputs, [text for text in suspects if len(tokenizer(text, verbose=False)["input_ids"]) > length]


def warn_of_cut(texts: Sequence[str], length: int) -> None:
    """One warning for all texts that were cut."""
    if texts:
        logger.warning(
            "%d of the texts are longer than the %d tokens of the text tower and were cut; the first: %.200r",
            len(texts),
            length,
            texts[0],
        )
