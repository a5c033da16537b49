"""What a model is trained for: a list of objectives, weighted and summed.

An objective is called as `objective(outputs, inputs) -> loss`, a scalar: `outputs` is what the model's forward gave
for a batch, `inputs` what it was given. The loss it returns is a mean over the examples of this process, or, where
examples of other processes count, such that the mean over processes is the loss of the global batch: gradients are
averaged over the processes.

An objective with parameters of its own is a `TrainedObjective` (`model.py`), which runs inside the model's forward;
here it appears as `FromForward`. Where `mini_batch_size` is set, the contrastive loss, which needs all embeddings,
goes by the gradient cache (`Contrastive.in_chunks`), and the others, means over examples, join in its second pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .model import ObjectiveModel, TrainedObjective


class Objective(Protocol):
    def __call__(self, outputs: ModelOutput, inputs: Mapping[str, Any]) -> torch.Tensor: ...


class Weighted(NamedTuple):
    objective: Objective
    weight: float


class FromForward:
    """The objective of this name in an `ObjectiveModel`, whose forward has computed its loss."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, outputs: ModelOutput, inputs: Mapping[str, Any]) -> torch.Tensor:
        return outputs["objective_losses"][self.name]


def trained_beside(
    model: nn.Module | None, objectives: Mapping[str, tuple[TrainedObjective, float]]
) -> ObjectiveModel:
    """The model with the objectives that have parameters.

    Raises:
        TypeError, ValueError: there is no model, or the objectives are no mapping {name: (objective, weight)}.
    """
    if model is None:
        raise ValueError("objectives need the model itself: pass model, not model_init")
    check_objectives(objectives)
    return ObjectiveModel(model, {name: objective for name, (objective, _) in objectives.items()})


def check_objectives(objectives: Any) -> None:
    """
    Raises:
        TypeError, ValueError: they are no mapping {name: (objective, weight)}; naming the entry.
    """
    if not isinstance(objectives, Mapping):
        raise TypeError(
            f"objectives must be a mapping {{name: (objective, weight)}}, got a {type(objectives).__name__}"
        )
    for name, entry in objectives.items():
        if not isinstance(entry, Sequence) or len(entry) != 2 or not isinstance(entry[0], TrainedObjective):
            raise TypeError(f"objectives[{name!r}] must be (a TrainedObjective, its weight), got {entry!r:.80}")
        if not isinstance(entry[1], (int, float)) or not 0 <= entry[1] < float("inf"):
            raise ValueError(f"objectives[{name!r}] must have a weight that is not negative, got {entry[1]!r}")
        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"objectives: {name!r} is no name of a module; use letters and underscores")


def check_shardable(model: ObjectiveModel, fsdp_version: int) -> None:
    """Refuse objectives that do not work under FSDP, see `TrainedObjective.shardable`.

    Raises:
        ValueError: naming them, and the remedy.
    """
    parts = cast(Mapping[str, TrainedObjective], model.parts)
    refused = ", ".join(name for name, part in parts.items() if not part.shardable)
    if refused:
        raise ValueError(f"{refused}: not under FSDP, as they need parameters outside the forward; use DDP")
    if fsdp_version != 2:
        raise ValueError(f"{', '.join(parts)}: not under the first FSDP; set version 2 in fsdp_config, or use DDP")


def weighted_sum(objectives: Sequence[Weighted], outputs: ModelOutput, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The loss of a batch."""
    losses = ((weight, objective(outputs, inputs)) for objective, weight in objectives)
    # A factor of 1 would be another operation and, on XLA, another number that a graph may share or not.
    first, *others = (loss if weight == 1 else weight * loss for weight, loss in losses)
    return sum(others, start=first)
