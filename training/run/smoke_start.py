"""Tiny checkpoints with random weights, in place of those that a recipe starts from, for `--smoke`."""

from pathlib import Path

import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)

from ..data.emoji.loader import load_emoji
from .fields import Recipe
from .smoke import START, TEXT, TOWER, VISION


def small_start(recipe: Recipe) -> None:
    """Write what the recipe starts from into `start` in its output folder, and point the recipe there.

    A model is a SigLIP with a tokenizer of its own, a tower a ViT.
    """
    folder, model = Path(recipe.training.output_dir) / "start", recipe.model
    torch.manual_seed(recipe.training.seed)
    if model.model_name_or_path == START:
        _write_model(folder)
        model.model_name_or_path = str(folder)
    if model.vision_name_or_path == START:
        tower = ViTConfig(**TOWER, image_size=VISION["image_size"], patch_size=VISION["patch_size"])
        ViTModel(tower, add_pooling_layer=False).save_pretrained(folder)
        side = VISION["image_size"]
        ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
        model.vision_name_or_path = str(folder)


def _write_model(folder: Path) -> None:
    length, side = TEXT["max_position_embeddings"], VISION["image_size"]
    tokenizer = train_tokenizer(load_emoji("train")["en"], vocab_size=500, max_length=length)
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    SiglipExtModel(SiglipExtConfig(vision_config=VISION, text_config={**TEXT, **tokens})).save_pretrained(folder)
    image_processor = SiglipExtImageProcessor(size={"height": side, "width": side})
    SiglipExtProcessor(image_processor, tokenizer).save_pretrained(folder)
