"""Cases for `distributed_worker.py`: distillation and masking beside the contrastive loss, in float64."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext.training.arguments import SiglipExtTrainingArguments
from modeling_siglip_ext.training.objectives.matching import MatchingSettings
from modeling_siglip_ext.training.objectives.self_distillation import self_distillation
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.models import TINY, TINY_TEXT


STEPS = 6
CASES = {
    "distill-plain": {},
    "distill-late": {"starts_at": 0.5},
    "distill-cache": {"mini_batch_size": 1},
    "distill-accumulation": {"gradient_accumulation_steps": 2, "starts_at": 0.5},
    "distill-accumulation-cache": {"gradient_accumulation_steps": 2, "mini_batch_size": 2, "starts_at": 0.5},
}


def examples(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        {
            "pixel_values": draw(3, 16, 16),
            "input_ids": torch.randint(0, 50, (8,), generator=generator),
            "global_view": draw(3, 16, 16),
            "local_views": draw(2, 3, 8, 8),
            "hidden_patches": torch.randperm(16, generator=generator)[:5],
        }
        for _ in range(count)
    ]


def collate(rows: list[dict]) -> dict:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}


def train(name: str, global_batch: int, output: Path) -> SiglipExtTrainer:
    changes = dict(CASES[name])
    torch.manual_seed(0)
    vision = {**TINY, "image_size": 16, "patch_size": 4}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=TINY_TEXT))
    settings = MatchingSettings(momentum=0.8, hidden=16, bottleneck=8, prototypes=24)
    objectives = self_distillation(
        model, {"distillation": 1.0, "masking": 0.5}, settings, starts_at=changes.pop("starts_at", 0.0)
    )
    args = SiglipExtTrainingArguments(
        output_dir=str(output / "run"),
        per_device_train_batch_size=global_batch // int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=STEPS,
        learning_rate=3e-3,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **changes,
    )
    trainer = SiglipExtTrainer(
        model=model, args=args, objectives=objectives, train_dataset=examples(43), data_collator=collate
    )
    trainer.model.double()
    trainer.train()
    if trainer.is_world_process_zero():
        state = {name: tensor.detach().double() for name, tensor in trainer.model.state_dict().items()}
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        for figure in ("loss_distillation", "loss_masking", "masking_teacher_entropy", "distillation_feature_spread"):
            found = [entry[figure] for entry in logs if figure in entry]
            assert len(found) == (STEPS if objectives["masking"][0].starts_at == 0 else STEPS // 2)
            state[figure] = torch.tensor(found, dtype=torch.float64)
        save_file(state, output / f"{name}.safetensors")
    return trainer
