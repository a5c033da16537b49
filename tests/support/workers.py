"""What the workers that train have in common: arguments for a quick run on a CPU, and what it read and logged."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modeling_siglip_ext.training import SiglipExtTrainer, SiglipExtTrainingArguments


# for a run that is to be resumed: checkpoints in the middle of an epoch and between two logs, and all that has a state
RESUMED = {
    "gradient_accumulation_steps": 2,
    "ema_decay": 0.9,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
}


def quick_arguments(folder: Path, global_batch: int, **changes: Any) -> SiglipExtTrainingArguments:
    """Of a run with so many examples in a batch of all processes."""
    usual = {
        "per_device_train_batch_size": global_batch // int(os.environ.get("WORLD_SIZE", "1")),
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return SiglipExtTrainingArguments(output_dir=str(folder), **usual | changes)


def recording(note: Callable[[SiglipExtTrainer, dict], Any]) -> type[SiglipExtTrainer]:
    """A Trainer that keeps what `note` says of each batch that it trains on, in `batches`."""

    class Recorder(SiglipExtTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.batches: list[Any] = []

        def training_step(self, model, inputs, num_items_in_batch=None):
            self.batches.append(note(self, inputs))
            return super().training_step(model, inputs, num_items_in_batch)

    return Recorder


def collate(rows: list[dict]) -> dict:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}


def logged(trainer: SiglipExtTrainer, figure: str) -> torch.Tensor:
    """A figure of the logs of training steps, for each of those that have it."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor([entry[figure] for entry in entries if figure in entry], dtype=torch.float64)


def parameters(trainer: SiglipExtTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
