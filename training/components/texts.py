"""What is saved gives the tokens that were trained with: the tokenizer is put in order, and tried, before step 1."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from modeling_siglip_ext.texts import STOCK_TEXT_LENGTH
from modeling_siglip_ext.tokenization_siglip_ext import fit_tokenizer

from ..data.collator import ImageTextCollator


logger = logging.get_logger(__name__)
PROBES = ("A Photo of a CAT, on the mat!", "two  dogs; naïve 猫 🐈", "don't re-read U.S. words " * 80, "")


class TrainedTexts(TrainerCallback):
    """Sees to it that the processor that is saved gives the tokens that are trained with, whatever the tokenizer.

    Args:
        model: the dual model without wrappers.
        processor: what is saved with it, if anything.
        collator: makes the batches.

    Raises:
        ValueError: the tokenizer does not fit the text tower (`fit_tokenizer`), or the collator pads otherwise.
    """

    def __init__(self, model: nn.Module, processor: Any, collator: Any):
        self.config: Any = model.config
        self.text: Any = getattr(self.config, "text_config", self.config)
        # SigLIP's towers attend to their padding, the others take a mask
        self.full_length = "siglip" in getattr(self.text, "model_type", "")
        self.processor = processor
        self.length = collator.max_length if isinstance(collator, ImageTextCollator) else None
        positions = getattr(self.text, "max_position_embeddings", None)
        if self.full_length and self.length not in (None, positions):
            raise ValueError(
                f"the collator pads texts to {self.length} tokens, and the text tower takes {positions}: pass "
                f"ImageTextCollator(processor, max_length={positions})"
            )
        tokenizers = {id(found): found for found in _tokenizers(processor, getattr(collator, "processor", None))}
        for tokenizer in tokenizers.values():
            fit_tokenizer(tokenizer, self.text)
        self.fitted = bool(tokenizers)
        adapter: Any = getattr(model, "text_adapter", None)
        if adapter is not None:
            adapter.pad_token_id = self.text.pad_token_id

    def inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as the text tower is to see it: for SigLIP's at full length and without a mask.

        Raises:
            ValueError: texts of another length, or a mask of a tokenizer that was not seen and so not put in order.
        """
        if not self.full_length:
            return inputs
        length = inputs["input_ids"].shape[-1]
        if length != self.text.max_position_embeddings:
            raise ValueError(
                f"the batch has texts of {length} tokens, and the text tower takes {self.text.max_position_embeddings}"
                ': tokenize with padding="max_length" and that max_length'
            )
        mask = inputs.get("attention_mask")
        if mask is not None and not self.fitted and not mask.all():  # waits for the device, as nobody knows better
            raise ValueError(
                "the batch has an attention_mask, without which SigLIP's text towers are trained, and the tokenizer "
                "that made it would go on giving one: pass the Trainer processing_class=processor"
            )
        return {name: value for name, value in inputs.items() if name not in ("attention_mask", "token_type_ids")}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """
        Raises:
            ValueError: the processor gives other tokens when it was saved and loaded.
        """
        for tokenizer in _tokenizers(self.processor):
            check_saved(self.processor, tokenizer, self.config, self.length or self.text.max_position_embeddings)
        length = self.text.max_position_embeddings
        if self.full_length and length != STOCK_TEXT_LENGTH and state.is_world_process_zero:
            logger.warning(
                "the text tower takes %d tokens, and the zero-shot pipeline of transformers pads to %d: whoever uses "
                "that pipeline must import modeling_siglip_ext first",
                length,
                STOCK_TEXT_LENGTH,
            )


def _tokenizers(*owners: Any) -> Iterator[PreTrainedTokenizerBase]:
    for owner in owners:
        found = getattr(owner, "tokenizer", owner)
        if isinstance(found, PreTrainedTokenizerBase):
            yield found


def check_saved(processor: Any, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, length: int) -> None:
    """Save and load a processor beside a model's configuration, and compare what it makes of some texts.

    Tokenizer classes of one model rebuild their rules when they are loaded, and transformers may choose another class.

    Args:
        processor: the tokenizer, or a processor with it.
        length: tokens per text.

    Raises:
        ValueError: it gives other tokens then, or a mask that the tower does not take.
    """
    full = {"padding": "max_length", "truncation": True}
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        loader: Any = AutoProcessor if isinstance(processor, ProcessorMixin) else AutoTokenizer
        try:
            loaded = loader.from_pretrained(Path(folder))
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"the processor cannot be loaded when it was saved: {error}") from error
        again = loaded(text=list(PROBES), max_length=length, **full)
    expected = tokenizer(list(PROBES), max_length=length, **full)["input_ids"]
    wrong = [text for text, old, new in zip(PROBES, expected, again["input_ids"]) if list(old) != list(new)]
    if wrong or ("attention_mask" in again and "attention_mask" not in tokenizer.model_input_names):
        what = f"other tokens for {wrong[0]!r:.60}" if wrong else "a mask that the text tower is not trained with"
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) gives {what} when it was saved and loaded beside the model: "
            "save it in a form of its own first, as "
            "PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token=...)"
        )
