"""`--smoke`: a recipe with a tiny model and few steps on the bundled emoji, to see that it runs.

What makes the recipe stays: optimiser, learning rate, its schedule and factors, weight decay, clipping, the loss and
its initial temperature and bias, the objectives beside it, poolings, locked towers, gradient cache and averaged
weights. In place of checkpoints that a recipe starts from stand tiny ones with random weights.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, ViTConfig, ViTModel

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    train_tokenizer,
)

from ..components.card import output_folder
from ..data.emoji.loader import load_emoji
from .fields import EMOJI
from .objective_fields import REFERENCE, REFERENCE_EMBEDDINGS
from .recipe import Recipe


STEPS = 12
BATCH = 32
VOCABULARY = 500
# Stands for a checkpoint or tower that `small_start` makes in the output folder.
START = "smoke"
REFERENCE_START = "smoke-reference"

TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "max_position_embeddings": 64}
NAFLEX = {**TOWER, "naflex": True, "num_patches": 16, "patch_size": 8}
LENGTHS = [8, 16, 25]
IMAGE_PROCESSOR = SiglipExtImageProcessor(size={"height": VISION["image_size"], "width": VISION["image_size"]})
_BOTTLENECK = 8
# Belong to the data and the machine that the recipe is for.
_LEFT_OUT = (
    "scenes", "dataset_config", "train_split", "eval_split", "eval_fraction", "streaming", "image_embeddings",
    "group_column",
    "tokenizer_name_or_path", "text_name_or_path", "text_pooling", "text_length", "num_train_epochs", "max_steps",
    "max_examples", "max_seconds", "warmup_steps", "warmup_examples", "group_from_epoch", "bf16", "fp16", "tf32",
    "torch_compile", "gradient_checkpointing", "dataloader_num_workers", "eval_steps", "save_steps", "fsdp",
    "gradient_accumulation_steps", "region_column",
)  # fmt: skip
# Of heads and views, which at their size would be more than the model.
_SMALL_HEADS = {"hidden": 32, "bottleneck": 16, "prototypes": 64, "local_views": 2}


def shrunk(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe for a smoke run.

    The warm-up keeps its share of the run where the recipe gives both in examples or in steps.
    """
    values = {name: value for name, value in recipe.items() if name not in _LEFT_OUT}
    values |= {
        "dataset": EMOJI,
        "image_column": "image",
        "caption_column": ["en"],
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 256,
        "max_steps": STEPS,
        "warmup_steps": _warmup_share(recipe),  # below 1 it is a share of the run
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    if "self_distillation" in recipe:
        values["self_distillation"] = {**recipe["self_distillation"], **_SMALL_HEADS}
    if "curation" in recipe:
        kept = {name: value for name, value in recipe["curation"].items() if name != REFERENCE_EMBEDDINGS}
        read = {REFERENCE, REFERENCE_EMBEDDINGS} & recipe["curation"].keys()
        values["curation"] = {**kept, **({REFERENCE: REFERENCE_START} if read else {})}
    if "mini_batch_size" in recipe:
        values["mini_batch_size"] = BATCH // 2
    if "naflex_lengths" in recipe:
        values["naflex_lengths"] = LENGTHS
    if "mini_batch_tokens" in recipe:
        values["mini_batch_tokens"] = BATCH // 2 * min(LENGTHS)
    if "halve_batches_at" in recipe:
        values["halve_batches_at"] = max(LENGTHS)
    starts = [name for name in ("model_name_or_path", "vision_name_or_path") if recipe.get(name) is not None]
    values |= dict.fromkeys(starts, START)
    if "image_size" in recipe:
        values["image_size"] = 2 * VISION["image_size"]
    if not starts:
        values["vision_config"] = {**(recipe.get("vision_config") or {}), **VISION}
    if "model_name_or_path" not in starts:
        values["vocab_size"] = VOCABULARY
        values["text_config"] = text = {**(recipe.get("text_config") or {}), **TEXT}
        text.pop("projection_size", None)
        if "token_embedding_size" in text:
            text["token_embedding_size"] = _BOTTLENECK
        if not starts and text.get("use_head", True):
            text["projection_size"] = VISION["hidden_size"]
    return values


def _warmup_share(recipe: dict[str, Any]) -> float:
    """Share of the run that warms up."""
    if recipe.get("warmup_examples") and recipe.get("max_examples"):
        return float(recipe["warmup_examples"]) / float(recipe["max_examples"])
    warmup = float(recipe.get("warmup_steps") or 0)
    if warmup < 1:
        return warmup  # a share already
    return warmup / float(recipe["max_steps"]) if recipe.get("max_steps") else 0.1


def small_start(recipe: Recipe) -> None:
    """Write what the recipe starts from into `start` in its output folder, and point the recipe there.

    A model is a SigLIP with a tokenizer of its own, a tower a ViT; a reference model goes into `reference`.
    """
    folder, model = output_folder(recipe.training) / "start", recipe.model
    torch.manual_seed(recipe.training.seed)
    if model.model_name_or_path == START:
        _write_model(folder, *_tower(VISION["image_size"], recipe.data.naflex_lengths is not None))
        model.model_name_or_path = str(folder)
    if model.vision_name_or_path == START:
        tower = ViTConfig(**TOWER, image_size=VISION["image_size"], patch_size=VISION["patch_size"])
        ViTModel(tower, add_pooling_layer=False).save_pretrained(folder)
        IMAGE_PROCESSOR.save_pretrained(folder)
        model.vision_name_or_path = str(folder)

    chosen = recipe.objectives.curation
    if isinstance(chosen, dict) and chosen.get(REFERENCE) == REFERENCE_START:
        folder = folder.with_name("reference")
        size = model.image_size or VISION["image_size"]
        _write_model(folder, *_tower(size, recipe.data.naflex_lengths is not None))
        chosen[REFERENCE] = str(folder)


def _tower(image_size: int, naflex: bool) -> tuple[dict[str, Any], BaseImageProcessor]:
    """The fields of an image tower, and the image processor that goes with it."""
    if naflex:
        images = SiglipExtNaflexImageProcessor(patch_size=NAFLEX["patch_size"], max_num_patches=NAFLEX["num_patches"])
        return NAFLEX, images
    images = SiglipExtImageProcessor(size={"height": image_size, "width": image_size})
    return {**VISION, "image_size": image_size}, images


def _write_model(folder: Path, vision: dict[str, Any], images: BaseImageProcessor) -> None:
    captions = load_emoji("train")["en"]
    tokenizer = train_tokenizer(captions, vocab_size=VOCABULARY, max_length=TEXT["max_position_embeddings"])
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, "vocab_size": len(tokenizer), **ends}
    SiglipExtModel(SiglipExtConfig(vision_config=vision, text_config=text)).save_pretrained(str(folder))
    SiglipExtProcessor(images, tokenizer).save_pretrained(str(folder))
