"""What a model is trained for: a list of objectives, weighted and summed.

An objective is called as `objective(outputs, inputs) -> loss`, a scalar: `outputs` is what the model's forward gave
for a batch, `inputs` what it was given. It holds what else it needs and is made once, in `build_objectives`. The
loss it returns is a mean over the examples of this process, or, where examples of other processes count, such that
the mean over processes is the loss of the global batch: gradients are averaged over the processes.

A new objective is a file here that defines one, and a line in `build_objectives`. Where `mini_batch_size` is set, the
Trainer calls no objective with the whole batch: the contrastive one, which needs all embeddings, goes by the gradient
cache (`Contrastive.in_chunks`). An objective that is a mean over examples is to join there, chunk by chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .contrastive import Contrastive


class Objective(Protocol):
    def __call__(self, outputs: ModelOutput, inputs: Mapping[str, Any]) -> torch.Tensor: ...


class Weighted(NamedTuple):
    objective: Objective
    weight: float


def build_objectives(core: Callable[[], nn.Module]) -> tuple[Contrastive, list[Weighted]]:
    """The contrastive objective, which evaluation asks for by itself, and all that is trained for."""
    contrastive = Contrastive(core)
    return contrastive, [Weighted(contrastive, 1.0)]


def weighted_sum(objectives: Sequence[Weighted], outputs: ModelOutput, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The loss of a batch."""
    losses = ((weight, objective(outputs, inputs)) for objective, weight in objectives)
    # A factor of 1 would be another operation and, on XLA, another number that a graph may share or not.
    first, *others = (loss if weight == 1 else weight * loss for weight, loss in losses)
    return sum(others, start=first)
