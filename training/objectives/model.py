"""All that is trained, behind one forward: the dual model, and objectives that have parameters of their own.

DDP, FSDP, torch.compile and autocast act on the module that they are given and on calls of its forward. So a decoder
or a head that trains beside the towers must lie in that module and run inside that call.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ModelOutput


class TrainedObjective(nn.Module):
    """An objective with parameters: its forward gives the mean of its loss over the examples of a batch, a scalar.

    It is called inside the forward of `ObjectiveModel`. A batch may be a chunk of the gradient cache: the loss of a
    whole batch is the mean of its chunks, weighted by their examples. Randomness must come with the batch or from
    torch's generators, which are set back between the two forwards of a chunk.
    """

    inputs: tuple[str, ...] = ()
    """Names in the batch that are for it and not for the towers."""

    def forward(self, core: nn.Module, outputs: ModelOutput, batch: Mapping[str, Any]) -> torch.Tensor:
        """
        Args:
            core: the dual model, for what its outputs do not have.
            outputs: what it gave for the batch: `vision_model_output.last_hidden_state` (B, N, D) and more.
            batch: what was given to it, and the objective's own `inputs`.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each step of the optimizer, in every process."""


class ObjectiveModel(nn.Module):
    """A dual model with what is trained beside it. To everyone but its forward it looks like the dual model.

    Args:
        model: the dual model, possibly inside a PEFT model.
        parts: objectives by name; their parameters are `parts.<name>.…`, those of the dual model `model.…`.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, TrainedObjective]):
        super().__init__()
        self.model = model
        self.parts = nn.ModuleDict(parts)
        self.active: tuple[str, ...] = tuple(parts)
        """Names of the objectives that are computed now."""

    def get_base_model(self) -> nn.Module:
        """The dual model, under PEFT's name for it."""
        inner = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # ty: ignore[call-non-callable]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *, objectives: bool = False, **inputs: Any) -> ModelOutput:
        """The dual model's outputs; with `objectives` also `objective_losses`, {name: scalar} of the active ones."""
        own = {name for part in self.parts.values() for name in cast(TrainedObjective, part).inputs}
        outputs = self.model(**{name: value for name, value in inputs.items() if name not in own})
        if objectives:
            core = self.get_base_model()
            outputs["objective_losses"] = {name: self.parts[name](core, outputs, inputs) for name in self.active}
        return outputs

    def after_step(self) -> None:
        for name in self.active:
            cast(TrainedObjective, self.parts[name]).after_step()


class AfterStep(TrainerCallback):
    """Tells the objectives of a model that the optimizer has made a step."""

    def __init__(self, model: ObjectiveModel):
        self.model = model

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.model.after_step()
