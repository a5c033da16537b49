"""The model and processor that a recipe names: a checkpoint, towers put together, or one from scratch."""

import copy
from typing import Any, cast

from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Siglip2Processor,
    SiglipProcessor,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtProcessor,
    fit_processor,
    train_tokenizer,
)
from modeling_siglip_ext.configuration_siglip_ext import SiglipExtTextConfig, SiglipExtVisionConfig, is_foreign
from modeling_siglip_ext.image_processing_siglip_ext import image_processor_for
from modeling_siglip_ext.modeling_siglip_ext import build_adapter, embedding_size, load_tower, source_config
from modeling_siglip_ext.positions import resample_positions
from modeling_siglip_ext.tokenization_siglip_ext import fit_tokenizer

from ..components.embedding_tower import EmbeddingTower
from ..components.initial_values import InitialValues, set_initial_values
from .fields import ModelArguments, as_mapping


POSITIONS = "vision_model.embeddings.position_embedding.weight"
# Tokens per text for text towers that, unlike SigLIP's, take shorter texts than they have positions.
FOREIGN_TEXT_LENGTH = 64


def build_model(
    model: ModelArguments, captions: list[str] | None, precomputed: bool = False
) -> tuple[SiglipExtModel, ProcessorMixin]:
    """A model and its processor, as the recipe says.

    Args:
        captions: to train a tokenizer on, where there is no trained one; None if they cannot be read beforehand.
        precomputed: leave the image tower away; an `EmbeddingTower` stands in for it.

    Raises:
        ValueError: if a tokenizer would have to be trained without captions, or one does not fit its text tower.
    """
    if model.vision_name_or_path is not None:
        return _from_towers(model, captions, precomputed)
    if precomputed:
        raise ValueError("image_embeddings needs vision_name_or_path, the image tower they were made by")
    attention: dict[str, Any] = {}
    if model.attn_implementation is not None:
        attention["attn_implementation"] = model.attn_implementation
    if model.model_name_or_path is not None:
        processor = AutoProcessor.from_pretrained(model.model_name_or_path)
        start = SiglipExtModel.from_pretrained(model.model_name_or_path, naflex=model.naflex, **attention)
        if model.naflex is not None:  # a folder whose two halves do not fit is refused, not repaired
            processor = fit_processor(processor, start.config)
        processor = _as_saved(processor)
        return start if model.image_size is None else at_image_size(start, processor, model.image_size), processor
    config = SiglipExtConfig(
        vision_config=as_mapping("vision_config", model.vision_config),
        text_config={**text_fields(model), "vocab_size": model.vocab_size},
        **_head(model),
    )
    tokenizer = _tokenizer(config, model, captions)
    images = image_processor_for(cast(SiglipExtVisionConfig, config.vision_config))
    dual = SiglipExtModel._from_config(config, **attention)
    set_initial_values(dual, InitialValues(**(as_mapping("initial_values", model.initial_values) or {})))
    return dual, SiglipExtProcessor(images, tokenizer)


def _as_saved(processor: ProcessorMixin) -> ProcessorMixin:
    """The processor in the form that keeps its settings when it is saved; Siglip2Processor puts its own in place."""
    if isinstance(processor, Siglip2Processor):
        return SiglipExtProcessor(processor.image_processor, processor.tokenizer)
    return processor


def at_image_size(model: SiglipExtModel, processor: ProcessorMixin, image_size: int) -> SiglipExtModel:
    """The model at another resolution, with its learned positions resampled as big_vision does when it loads.

    Args:
        processor: its image processor gets the new size.
        image_size: in pixels.

    Raises:
        ValueError: for NaFlex, which takes any size, for an image tower from elsewhere, and below one patch.
    """
    config = copy.deepcopy(model.config)
    vision = cast(SiglipExtVisionConfig, config.vision_config)
    if is_foreign(vision) or vision.naflex:
        raise ValueError(
            f"image_size={image_size} needs a SigLIP image tower of fixed resolution: NaFlex takes images of any "
            "size, and a tower from elsewhere has its own"
        )
    if image_size < vision.patch_size:
        raise ValueError(f"image_size={image_size} is smaller than the patch of {vision.patch_size} pixels")
    vision.image_size = image_size
    other = SiglipExtModel._from_config(config, attn_implementation=model.config._attn_implementation)
    state = model.state_dict()
    if POSITIONS in state:  # fixed sine-cosine positions have no table
        state[POSITIONS] = resample_positions(state[POSITIONS], vision.grid_size)
    other.load_state_dict(state)
    processor.image_processor.size = {"height": image_size, "width": image_size}
    return other


def text_length(model: SiglipExtModel, processor: ProcessorMixin) -> int:
    """Tokens per text: all positions of a SigLIP tower; of other towers what the tokenizer says."""
    positions = cast(SiglipExtTextConfig, model.config.text_config).max_position_embeddings
    return positions if model.text_adapter is None else min(positions, processor.tokenizer.model_max_length)


def attach_image_tower(model: SiglipExtModel, name: str) -> None:
    """Put the image tower in the place of the `EmbeddingTower` that training had."""
    tower = load_tower(model.config, "vision", name)
    model.vision_model = tower.to(model.logit_scale.device, model.logit_scale.dtype)
    model.vision_adapter = build_adapter(model.config, "vision", tower)


def _from_towers(
    model: ModelArguments, captions: list[str] | None, precomputed: bool
) -> tuple[SiglipExtModel, ProcessorMixin]:
    name = model.vision_name_or_path
    assert name is not None
    fields: dict[str, Any] = {"vision_config": source_config(name, "vision"), "vision_pooling": model.vision_pooling}
    if model.text_name_or_path is not None:
        text: dict[str, Any] = {
            "text_config": source_config(model.text_name_or_path, "text"),
            "text_pooling": model.text_pooling,
        }
        config = SiglipExtConfig(**fields, **text, **_head(model))
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model.text_name_or_path))
    else:
        width = embedding_size(SiglipExtConfig(**fields), "vision")
        text_config = {"projection_size": width, **text_fields(model), "vocab_size": model.vocab_size}
        config = SiglipExtConfig(**fields, text_config=text_config, **_head(model))
        tokenizer = _tokenizer(config, model, captions)
    if is_foreign(cast(PreTrainedConfig, config.text_config)):
        config.text_projection_size = embedding_size(config, "vision")
    vision_config = cast(PreTrainedConfig, config.vision_config)
    vision: Any = load_tower(config, "vision", name) if not precomputed else EmbeddingTower(vision_config)
    trained_text = None if model.text_name_or_path is None else load_tower(config, "text", model.text_name_or_path)
    dual = SiglipExtModel(config, vision_model=vision, text_model=trained_text)
    if precomputed:
        dual.vision_adapter = None  # its pooling is in the embeddings
    if model.attn_implementation is not None:
        dual.set_attn_implementation(model.attn_implementation)
    images = AutoImageProcessor.from_pretrained(name)
    if dual.text_adapter is None:
        if model.text_length is not None:
            raise ValueError(
                "text_length is for a text tower from elsewhere: a SigLIP tower has its own, leave it out"
            )
        return dual, SiglipExtProcessor(images, tokenizer)
    positions = getattr(config.text_config, "max_position_embeddings", None)
    if model.text_length is not None and positions is not None and model.text_length > positions:
        raise ValueError(f"text_length={model.text_length}, and {model.text_name_or_path} has {positions} positions")
    tokenizer.model_max_length = model.text_length or min(FOREIGN_TEXT_LENGTH, positions or FOREIGN_TEXT_LENGTH)
    return dual, SiglipProcessor(images, tokenizer)  # ours would leave out the mask, which such a tower takes


def text_fields(model: ModelArguments) -> dict[str, Any]:
    return as_mapping("text_config", model.text_config) or {}


def _head(model: ModelArguments) -> dict[str, Any]:
    """The loss head of a new model; in the softmax a bias would cancel."""
    values = {name: getattr(model, name) for name in ("loss_type", "logit_scale_init", "logit_bias_init")}
    values = {name: value for name, value in values.items() if value is not None}
    return {**values, "logit_bias_init": None} if model.loss_type == "softmax" else values


def _tokenizer(config: SiglipExtConfig, model: ModelArguments, captions: list[str] | None) -> PreTrainedTokenizerBase:
    """The named tokenizer, or one trained on the captions; the text config gets its numbers."""
    text = cast(SiglipExtTextConfig, config.text_config)
    if model.tokenizer_name_or_path is not None:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model.tokenizer_name_or_path))
    elif captions is None:
        raise ValueError(
            "a tokenizer for a new text tower cannot be trained on a stream: set tokenizer_name_or_path, or start "
            "from model_name_or_path or text_name_or_path"
        )
    else:
        tokenizer = train_tokenizer(captions, vocab_size=model.vocab_size, max_length=text.max_position_embeddings)
    # A small corpus can give fewer tokens than asked for, and a vocabulary can have holes.
    text.vocab_size = max(tokenizer.get_vocab().values()) + 1
    text.pad_token_id, text.eos_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    fit_tokenizer(tokenizer, text)
    return tokenizer
