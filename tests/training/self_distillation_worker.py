"""Cases for `distributed_worker.py`: distillation and masking beside the contrastive loss, in float64."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext.training.objectives.matching import MatchingSettings
from modeling_siglip_ext.training.objectives.self_distillation import self_distillation
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.models import TINY, TINY_TEXT
from support.workers import collate, logged, quick_arguments


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


def train(name: str, global_batch: int, output: Path) -> SiglipExtTrainer:
    changes = dict(CASES[name])
    torch.manual_seed(0)
    vision = {**TINY, "image_size": 16, "patch_size": 4}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=TINY_TEXT))
    settings = MatchingSettings(momentum=0.8, hidden=16, bottleneck=8, prototypes=24)
    objectives = self_distillation(
        model, {"distillation": 1.0, "masking": 0.5}, settings, starts_at=changes.pop("starts_at", 0.0)
    )
    trainer = SiglipExtTrainer(
        model=model,
        args=quick_arguments(output / "run", global_batch, max_steps=STEPS, **changes),
        objectives=objectives,
        train_dataset=examples(43),
        data_collator=collate,
    )
    trainer.model.double()
    trainer.train()
    if trainer.is_world_process_zero():
        state = {name: tensor.detach().double() for name, tensor in trainer.model.state_dict().items()}
        for figure in ("loss_distillation", "loss_masking", "masking_teacher_entropy", "distillation_feature_spread"):
            state[figure] = logged(trainer, figure)
            assert len(state[figure]) == (STEPS if objectives["masking"][0].starts_at == 0 else STEPS // 2)
        save_file(state, output / f"{name}.safetensors")
    return trainer
