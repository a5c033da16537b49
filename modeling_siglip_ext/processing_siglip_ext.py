"""The processor: images and texts to model inputs, with the text settings that SigLIP towers were trained with."""

from transformers import Siglip2Processor, SiglipProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .texts import NO_LENGTH
from .tokenization_siglip_ext import set_text_length, without_mask


logger = logging.get_logger(__name__)


class SiglipExtProcessor(ProcessorMixin):
    """An image processor and a tokenizer in one.

    Texts are padded and truncated to the tokenizer's `model_max_length` and come without a mask, because a SigLIP text
    tower attends to its padding. `padding=True`, which pads to the longest text of the batch and silently ruins the
    embeddings, is turned into "max_length" with one warning.

    A saved processor is written under its stock class, so that `AutoProcessor` finds it without this package.
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
        padding = {**kwargs, **nested}.get("padding", "max_length")
        if padding in (True, "longest"):
            logger.warning_once(
                "padding=%r pads to the longest text, but a SigLIP text tower needs every text at full length: "
                'using padding="max_length"',
                padding,
            )
            padding = "max_length"
        if padding == "max_length" and self.tokenizer.model_max_length > NO_LENGTH and "max_length" not in kwargs:
            raise ValueError(
                "the tokenizer has no model_max_length to pad to: set tokenizer.model_max_length to the text tower's "
                "max_position_embeddings"
            )
        if "padding" in nested:
            return {**kwargs, "text_kwargs": {**nested, "padding": padding}}
        return {**kwargs, "padding": padding}

    def save_pretrained(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write it under its stock class, so that it says there what it says here: full-length texts without a mask.

        Returns:
            The files written.
        """
        tokenizer = self.tokenizer
        if tokenizer.model_max_length <= NO_LENGTH:
            set_text_length(tokenizer, tokenizer.model_max_length)
        naflex = "spatial_shapes" in self.image_processor.model_input_names
        stock = (Siglip2Processor if naflex else SiglipProcessor)(self.image_processor, tokenizer)
        names, kept = tokenizer.model_input_names, dict(tokenizer.init_kwargs)
        without_mask(tokenizer)
        try:
            return stock.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:  # for a tower from elsewhere it may go on giving one here
            tokenizer.model_input_names, tokenizer.init_kwargs = names, kept
