"""Exponential moving average of the weights: kept beside them, saved, resumed, evaluated, and the run's result."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .graph_input import graph_input


FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """average ← decay · average + (1 − decay) · weight after every optimiser step, for each trained parameter.

    The decay grows as (1 + steps) / (10 + steps) until it reaches `decay`, so that a short run does not average its
    random start. Averages are kept in float32 or better.

    Args:
        model: the unwrapped model.
        decay: between 0 and 1, e.g. 0.999.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self.parameters.items()
        }

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.update()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.copy_to_model()

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages = list(self.average.values())
        weights = [p.detach().to(average.dtype) for p, average in zip(self.parameters.values(), averages)]
        if averages[0].device.type != "xla":
            torch._foreach_lerp_(averages, weights, 1 - decay)
            return
        for average, weight in zip(averages, weights):
            average.lerp_(weight, graph_input(1 - decay, average))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])

    @contextmanager
    def in_model(self) -> Generator[None]:
        """Put the average in place of the weights, and the weights back afterwards."""
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        tensors = {name: average.cpu().contiguous() for name, average in self.average.items()}
        save_file(tensors, folder / FILE, metadata={"steps": str(self.steps), "decay": str(self.decay)})

    def load(self, folder: Path, steps: int) -> None:
        """Continue from a checkpoint that was written after `steps` optimiser steps.

        Raises:
            FileNotFoundError: the checkpoint has no average.
            ValueError: it holds other parameters.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the checkpoint was written without ema_decay; unset it")
        saved = load_file(path)
        if saved.keys() != self.average.keys():
            differing = sorted(saved.keys() ^ self.average.keys())
            raise ValueError(f"{path} averages other parameters than are trained now, e.g. {differing[:3]}")
        for name, average in self.average.items():
            average.copy_(saved[name])
        self.steps = steps
