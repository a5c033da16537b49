"""Train tiny float64 models for 20 steps and save their parameters; run alone or by torchrun.

Usage: distributed_worker.py GLOBAL_BATCH OUTPUT_FOLDER CASE [CASE ...]
"""

import gc
import math
import sys
from pathlib import Path

import fsdp_worker
import naflex_worker
import self_distillation_worker
import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext.configuration_siglip_ext import SiglipExtConfig
from modeling_siglip_ext.modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.training.data.reference_embeddings import REFERENCE, ReferenceEmbeddings
from modeling_siglip_ext.training.objectives.curation import CurationSettings
from modeling_siglip_ext.training.objectives.model import TrainedObjective
from modeling_siglip_ext.training.objectives.super_batch import Curation
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.workers import collate, logged, parameters, quick_arguments


STEPS = 20
INITS = {"zero_bias": (math.log(2.3), 0.0), "default": (math.log(10), -10.0)}
# name: kind, init, further arguments
CASES = {
    "stock-zero_bias": ("stock", "zero_bias", {}),
    "stock-default": ("stock", "default", {}),
    "ours-zero_bias": ("ours", "zero_bias", {}),
    "ours-default": ("ours", "default", {}),
    "stock-cache": ("stock", "zero_bias", {"mini_batch_size": 2}),
    "ours-cache": ("ours", "zero_bias", {"mini_batch_size": 2}),
    "ours-pairs": ("ours", "zero_bias", {}),
    "ours-pairs-cache": ("ours", "zero_bias", {"mini_batch_size": 2}),
    "stock-pairs": ("stock", "zero_bias", {}),
    "ours-accumulation": ("ours", "zero_bias", {"gradient_accumulation_steps": 2}),
    "ours-objective": ("ours", "zero_bias", {}),
    "ours-objective-cache": ("ours", "zero_bias", {"mini_batch_size": 1}),
    "ours-curation": ("ours", "zero_bias", {}),
    "ours-curation-cache": ("ours", "zero_bias", {"mini_batch_size": 2}),
    "ours-curation-recalled": ("ours", "zero_bias", {}),
    "ours-curation-recalled-cache": ("ours", "zero_bias", {"mini_batch_size": 2}),
    "ours-curation-accumulation": ("ours", "zero_bias", {"gradient_accumulation_steps": 2}),
    "stock-curation-pairs": ("stock", "zero_bias", {}),
    "ours-accumulation-cache": ("ours", "zero_bias", {"gradient_accumulation_steps": 2, "mini_batch_size": 1}),
}


def examples(count: int, pairs: bool = False) -> list[dict]:
    """With `pairs` every third one belongs together, in whatever process it is."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(3, 16, 16, generator=generator, dtype=torch.float64),
            "input_ids": torch.randint(0, 50, (8,), generator=generator),
            **({"pair_ids": torch.tensor(number % 3)} if pairs else {}),
        }
        for number in range(count)
    ]


def build(kind: str, init: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    towers = {
        "vision_config": {**width, "image_size": 16, "patch_size": 8},
        "text_config": {**width, "vocab_size": 50, "max_position_embeddings": 8},
    }
    model = SiglipModel(SiglipConfig(**towers)) if kind == "stock" else SiglipExtModel(SiglipExtConfig(**towers))
    model = model.double()
    with torch.no_grad():
        model.logit_scale.fill_(INITS[init][0])
        model.logit_bias.fill_(INITS[init][1])
    return model


@torch.no_grad()
def recalled(reference: torch.nn.Module, data: list[dict]) -> ReferenceEmbeddings:
    """The reference's embeddings in place of the model; each example gets its own."""
    inputs = {name: torch.stack([row[name] for row in data]) for name in ("input_ids", "pixel_values")}
    found = reference.eval()(**inputs)
    for row, image, text in zip(data, found.image_embeds, found.text_embeds):
        row[REFERENCE] = torch.stack([image, text])
    head = reference.logit_scale.item(), reference.logit_bias.item()
    return ReferenceEmbeddings(torch.empty(0), (), {}, *head, identity="")


class Brightness(TrainedObjective):
    """The squared error of a linear map from the patches' mean to the image's mean."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(32, 1, dtype=torch.float64)
        torch.nn.init.ones_(self.map.weight)
        torch.nn.init.zeros_(self.map.bias)

    def forward(self, core, outputs, batch):
        found = self.map(outputs.vision_model_output.last_hidden_state.mean(1))[:, 0]
        return (found - batch["pixel_values"].mean((1, 2, 3))).square().mean()


def train(name: str, global_batch: int, output: Path) -> SiglipExtTrainer:
    kind, init, changes = CASES[name]
    model = build(kind, init)
    # 43 = 5 global batches of 8 and a remainder that must be dropped alike.
    pairs = "pairs" in name
    data = examples(43, pairs)
    reference = build(kind, "default", 1) if "curation" in name else None
    if "recalled" in name:
        reference = recalled(reference, data)
    trainer = SiglipExtTrainer(
        model=model,
        args=quick_arguments(output / "run", global_batch, max_steps=STEPS, warmup_steps=2, **changes),
        train_dataset=data,
        data_collator=collate,
        objectives={"brightness": (Brightness(), 0.5)} if "objective" in name else {},
        curation=None if reference is None else Curation(CurationSettings(chunks=3), reference),
    )
    trainer.train()
    # 21 pairs: evaluation batches of 8 and 2 x 8 both end in a partial batch, which is padded with repeated samples.
    metrics = trainer.evaluate(examples(21, pairs))
    if trainer.is_world_process_zero():
        state = parameters(trainer)
        further = ("examples_drawn", "curation_score", "curation_score_chosen") if "curation" in name else ()
        further = (*further, "positive_pairs") if pairs else further
        for figure in ("positive_logit", "negative_logit", "grad_norm_vision", "examples_seen", *further):
            state[figure] = logged(trainer, figure)
        state["losses"] = logged(trainer, "loss")
        state["eval_loss"] = torch.tensor([metrics["eval_loss"]], dtype=torch.float64)
        save_file(state, output / f"{name}.safetensors")
    return trainer


def main(global_batch: int, output: Path, cases: list[str]) -> None:
    for name in cases:
        if name in CASES:
            trainer = train(name, global_batch, output)
        elif name in self_distillation_worker.CASES:
            trainer = self_distillation_worker.train(name, global_batch, output)
        elif name in naflex_worker.CASES:
            trainer = naflex_worker.train(name, global_batch, output)
    # In the process group of the Trainer: a second one in the same processes would find the addresses of the first.
    sharded = [name for name in cases if name in fsdp_worker.CASES]
    data = examples(5 * global_batch)
    fsdp_worker.run(sharded, lambda: build("ours", "zero_bias"), data, collate, global_batch, output)
    # Sharded modules and their mesh are in reference circles: they go while the group and its threads are there.
    gc.collect()
    trainer.end()
    # A wrapper that outlives the process group can deadlock with gloo's thread when it is freed (see `end`).
    assert not any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
