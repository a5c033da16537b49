"""Cases for `distributed_worker.py`: images of any shape at drawn lengths, in float64; each process packs its own."""

import random
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.training.data.collator import ImageTextCollator
from modeling_siglip_ext.training.data.dataset import ImageTextDataset
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.images import noise
from support.models import TINY_NAFLEX, TINY_TEXT
from support.workers import parameters, quick_arguments


STEPS = 6
LENGTHS = [5, 16, 25]
CASES = {
    "naflex-plain": {},
    "naflex-cache": {"mini_batch_tokens": 60},  # of 25 patches two images at a time
    "naflex-halves": {"halve_batches_at": 25, "mini_batch_tokens": 60},
    "naflex-accumulation": {"gradient_accumulation_steps": 2},
    "naflex-accumulation-cache": {"gradient_accumulation_steps": 2, "mini_batch_tokens": 25},
}


def rows(count: int) -> Dataset:
    draw = random.Random(0)
    images = [noise(draw.randint(1, 60), draw.randint(1, 60), number) for number in range(count)]
    return Dataset.from_dict({"image": images, "caption": [f"picture {number}" for number in range(count)]})


def train(name: str, global_batch: int, output: Path) -> SiglipExtTrainer:
    torch.manual_seed(0)
    data = rows(43)
    tokenizer = train_tokenizer(list(data["caption"]), vocab_size=300, max_length=TINY_TEXT["max_position_embeddings"])
    text = {**TINY_TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    text["eos_token_id"] = tokenizer.eos_token_id
    model = SiglipExtModel(SiglipExtConfig(vision_config=TINY_NAFLEX, text_config=text)).double()
    images = SiglipExtNaflexImageProcessor(patch_size=TINY_NAFLEX["patch_size"], max_num_patches=16)
    processor = SiglipExtProcessor(images, tokenizer)
    trainer = SiglipExtTrainer(
        model=model,
        args=quick_arguments(output / "run", global_batch, max_steps=STEPS, **CASES[name]),
        train_dataset=ImageTextDataset(data, image_processor=images, naflex_lengths=LENGTHS),
        eval_dataset=ImageTextDataset(data.select(range(21)), image_processor=images),
        data_collator=ImageTextCollator(processor, uint8=True),
        processing_class=processor,
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        state = parameters(trainer)
        state["eval_loss"] = torch.tensor([metrics["eval_loss"]], dtype=torch.float64)
        save_file(state, output / f"{name}.safetensors")
    return trainer
