"""The processor: images and texts to model inputs, with the text settings that SigLIP towers were trained with."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import Siglip2Processor, SiglipProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .configuration_siglip_ext import SiglipExtConfig, is_foreign
from .image_budget import is_naflex
from .image_processing_siglip_ext import STOCK_PATCHES, fit_image_processor, patch_settings
from .own_tokenizer import reads_texts, siglip2_reads
from .texts import NO_LENGTH, STOCK_TEXT_LENGTH
from .tokenization_siglip_ext import set_text_length, without_mask


logger = logging.get_logger(__name__)

# patch size, number of patches and text length that Siglip2Processor insists on, whatever its parts say
STOCK_NAFLEX = (*STOCK_PATCHES, STOCK_TEXT_LENGTH)


class SiglipExtProcessor(ProcessorMixin):
    """An image processor and a tokenizer in one.

    Texts are padded and truncated to the tokenizer's `model_max_length` and come without a mask, because a SigLIP text
    tower attends to its padding. `padding=True`, which pads to the longest text of the batch and silently ruins the
    embeddings, is turned into "max_length" with one warning.

    A saved processor is written under a stock class, so that `AutoProcessor` finds it without this package: under
    `SiglipProcessor`, which leaves image processor and tokenizer their settings, or `Siglip2Processor`, which puts its
    own in their place, where these are the same.
    """

    text_kwargs = {"padding": "max_length", "truncation": True, "return_attention_mask": False}

    def __init__(self, image_processor, tokenizer):
        super().__init__(image_processor, tokenizer)

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs
    ) -> BatchFeature:
        """
        Args:
            images: One image or a list: PIL, numpy or torch.
            text: One text or a list.
            kwargs: Passed on to the tokenizer and the image processor, e.g. `return_tensors="pt"`.

        Returns:
            `input_ids` (texts, max_length), and `pixel_values` (images, 3, H, W) or the three NaFlex inputs.

        Raises:
            ValueError: Neither images nor text given, or a tokenizer without a `model_max_length` to pad to.
        """
        if images is None and text is None:
            raise ValueError("give images, text or both")
        if text is not None:
            kwargs = self._full_length(kwargs)
        return super().__call__(images=images, text=text, **kwargs)

    def _full_length(self, kwargs: dict) -> dict:
        nested = kwargs.get("text_kwargs", {})
        given = {**kwargs, **nested}
        padding = given.get("padding", "max_length")
        if padding in (True, "longest"):
            logger.warning_once(
                "padding=%r pads to the longest text, but a SigLIP text tower needs every text at full length: "
                'using padding="max_length"',
                padding,
            )
            padding = "max_length"
        if padding == "max_length" and self.tokenizer.model_max_length > NO_LENGTH and "max_length" not in given:
            raise ValueError(
                "the tokenizer has no model_max_length to pad to: set tokenizer.model_max_length to the text tower's "
                "max_position_embeddings"
            )
        if "padding" in nested:
            return {**kwargs, "text_kwargs": {**nested, "padding": padding}}
        return {**kwargs, "padding": padding}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write it so that it says there what it says here: full-length texts without a mask.

        Beside a NaFlex model in stock form transformers would take any tokenizer for Gemma's: with another one the
        configuration of a model in the folder is written again, in the form of this package.

        Returns:
            The files written of the processor itself, as from the stock ones.
        """
        tokenizer = self.tokenizer
        if tokenizer.model_max_length <= NO_LENGTH:
            set_text_length(tokenizer, tokenizer.model_max_length)
        folder = Path(save_directory)
        naflex = is_naflex(self.image_processor)
        if naflex and not self._tokenizer_stays():
            keep_tokenizer(folder)
        fixed = naflex and (*patch_settings(self.image_processor), tokenizer.model_max_length) == STOCK_NAFLEX
        stock = (Siglip2Processor if fixed else SiglipProcessor)(self.image_processor, tokenizer)
        names, kept = tokenizer.model_input_names, dict(tokenizer.init_kwargs)
        without_mask(tokenizer)
        try:
            return stock.save_pretrained(str(folder), push_to_hub=push_to_hub, **kwargs)
        finally:  # for a tower from elsewhere it may go on giving one here
            tokenizer.model_input_names, tokenizer.init_kwargs = names, kept

    def _tokenizer_stays(self) -> bool:
        """Whether transformers reads the same tokenizer beside a "siglip2" model."""
        if type(self.tokenizer).__name__ == "Siglip2Tokenizer":
            return True
        return self.tokenizer.is_fast and siglip2_reads(json.loads(self.tokenizer.backend_tokenizer.to_str()))


def fit_processor(processor: Any, config: SiglipExtConfig) -> Any:
    """The processor of a model that was loaded with `naflex=...`: its image processor gets the tower's kind.

    One that fits already is given back as it is; else see `fit_image_processor`.

    Args:
        processor: ours or a stock one, with a tokenizer, of the saved model.
        config: of the model as it is now.
    """
    if is_foreign(config.vision_config):
        return processor
    images = fit_image_processor(processor.image_processor, config.vision_config)
    if images is processor.image_processor:
        return processor
    # ours leaves out the mask, which a text tower from elsewhere takes
    kind = SiglipProcessor if is_foreign(config.text_config) else SiglipExtProcessor
    return kind(images, processor.tokenizer)


def keep_tokenizer(folder: Path) -> None:
    """Write a NaFlex model's configuration in our form, which leaves the tokenizer beside it as it is.

    Names and shapes of the weights are the same in both forms, so the configuration is all that changes.
    """
    file = folder / "config.json"
    if not file.is_file() or not reads_texts(json.loads(file.read_text(encoding="utf-8"))):
        return  # a model that is saved here later looks for the tokenizer itself
    config = SiglipExtConfig.from_pretrained(folder)
    config.own_tokenizer = True
    config.save_pretrained(folder)
    logger.warning(
        "%s is now in the siglip_ext form, to be loaded with this package or trust_remote_code=True: beside a NaFlex "
        "model in stock form transformers would read its tokenizer as Gemma's and give every text other tokens",
        folder,
    )
