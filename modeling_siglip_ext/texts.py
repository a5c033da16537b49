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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Whether a tokenizer can be the one of a text tower, as far as its padding says.

    A configuration with the padding token of its class says nothing: those of SigLIP 2 and CLIP have it, and their
    tokenizers pad with another one.

    Args:
        config: of the text tower.

    Raises:
        ValueError: it has no padding token, or pads with another one than the tower was trained with.
    """
    name, pad, expected = type(tokenizer).__name__, tokenizer.pad_token_id, getattr(config, "pad_token_id", None)
    if pad is None:
        raise ValueError(
            f"the tokenizer ({name}) has no padding token: set tokenizer.pad_token to the one that the model is "
            "trained with, its eos_token if it has none of its own, and save the tokenizer"
        )
    if expected not in (None, pad, getattr(type(config), "pad_token_id", None)):
        raise ValueError(
            f"the tokenizer ({name}) pads with {tokenizer.pad_token!r}, id {pad}, and the text tower was made for "
            f"pad_token_id={expected}: set the tokenizer's pad_token, or text_config.pad_token_id if that is wrong"
        )


def check_table(tokenizer: PreTrainedTokenizerBase, config: Any, largest: int) -> None:
    """
    Args:
        config: of the text tower.
        largest: an id that the tokenizer gives.

    Raises:
        ValueError: the tower has no row for it.
    """
    rows = getattr(config, "vocab_size", None)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"the tokenizer's token {tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, and the text "
            f"tower's table {rows} rows (vocab_size): take the tokenizer that belongs to the model, or enlarge the "
            "table with model.resize_token_embeddings and save the model"
        )


def check_characters(texts: Sequence[str]) -> None:
    """
    Raises:
        TypeError: something that is no text.
        ValueError: a text with half of a surrogate pair, as JSON can have it, which is no character.
    """
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r:.60} is a {type(text).__name__}, not a text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text {text[:60]!r} has no character in place {error.start}, but half of a pair of surrogates: "
                "mend it or leave it out"
            ) from error


def tokenize(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Arguments of `get_text_features`, (texts, length) int64, and the texts that were too long and were cut.

    SigLIP towers get every text at full length and no mask, whatever the tokenizer's own settings. Cut texts keep
    their EOS token.

    Raises:
        ValueError: the tokenizer is not the one of the model, so that vectors would be wrong or an id has no row; or
            a text that no tokenizer reads.
    """
    config = text_config(model)
    check_tokenizer(tokenizer, config)
    check_characters(texts)
    length = config.max_position_embeddings
    if pads_to_full_length(model):
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        inputs = {"input_ids": tokens["input_ids"]}
        # the last place is EOS in a text that was cut, and padding, which may be EOS too, in one with room to spare
        full = tokens["input_ids"][:, max(0, length - 2)] != tokenizer.pad_token_id
    else:
        length = min(length, tokenizer.model_max_length)
        inputs = dict(tokenizer(list(texts), padding=True, max_length=length, truncation=True, return_tensors="pt"))
        full = torch.full((len(texts),), inputs["input_ids"].shape[1] >= length)
    check_table(tokenizer, config, int(inputs["input_ids"].max()))
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
