"""All that is trained, behind one forward: the dual model, and objectives that have parameters of their own.

DDP, FSDP, torch.compile and autocast act on the module that they are given and on calls of its forward. So a decoder
or a head that trains beside the towers must lie in that module and run inside that call.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ModelOutput

from modeling_siglip_ext import SiglipExtOutput


@dataclass
class ObjectiveOutput(SiglipExtOutput):
    """What an `ObjectiveModel` returns with the losses of its objectives: the dual model's outputs, and these.

    Its fields are declared, because DDP takes outputs apart and puts them together by their class.
    """

    objective_losses: dict[str, torch.Tensor] | None = None
    """Of the active objectives, by name: scalars."""


class TrainedObjective(nn.Module):
    """An objective with parameters: its forward gives the mean of its loss over the examples of a batch, a scalar.

    It is called inside the forward of `ObjectiveModel`. A batch may be a chunk of the gradient cache: the loss of a
    whole batch is the mean of its chunks, weighted by their examples. Randomness must come with the batch or from
    torch's generators, which are set back between the two forwards of a chunk.
    """

    inputs: tuple[str, ...] = ()
    """Names in the batch that are for it and not for the towers."""
    starts_at: float = 0.0
    """Share of training after which it joins. Until then it is not computed, and its parameters stay as they are."""
    shardable: bool = False
    """Whether it works under FSDP, which has its parameters and the model's whole inside the forward alone.

    Such an objective reads and changes them nowhere else: not in `join`, `after_step` or `figures`. One with a teacher
    cannot be shardable: the teacher begins as a copy of the tower and follows it after each step.
    """

    def forward(self, core: nn.Module, outputs: ModelOutput, batch: Mapping[str, Any]) -> torch.Tensor:
        """
        Args:
            core: the dual model, for what its outputs do not have.
            outputs: what it gave for the batch: `vision_model_output.last_hidden_state` (B, N, D) and more.
            batch: what was given to it, and the objective's own `inputs`.
        """
        raise NotImplementedError

    def check(self, core: nn.Module) -> None:
        """Refuse a model that it cannot train; called when a Trainer has locked its towers.

        Raises:
            ValueError: says why, and the remedy.
        """

    def identity(self) -> Mapping[str, Any]:
        """The settings that make a run with it another one, in terms of JSON."""
        return {}

    def form(self) -> Mapping[str, Any]:
        """What its parameters mean beyond their shapes, in terms of JSON; another run goes on with the same."""
        return {}

    def wait(self) -> None:
        """Called when a run begins that it has yet to join; a shorter one that this goes on from may have had it."""

    def join(self, core: nn.Module) -> None:
        """Called before its first step in a run, be it the first of all or one that is resumed."""

    def after_step(self, core: nn.Module) -> None:
        """Called after each step of the optimizer, in every process."""

    def figures(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> Mapping[str, float]:
        """What the logs show of the last step, beside the loss; called at logging steps, in every process.

        Args:
            reduce: sums a tensor over the processes.
        """
        return {}


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
        self.active: tuple[str, ...] = tuple(name for name, part in parts.items() if part.starts_at <= 0)
        """Names of the objectives that are computed now."""

    def get_base_model(self) -> nn.Module:
        """The dual model, under PEFT's name for it."""
        inner = self.model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # ty: ignore[not-callable]  # PEFT's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *, objectives: bool = False, **inputs: Any) -> ModelOutput:
        """The dual model's outputs; with `objectives` an `ObjectiveOutput`."""
        own = self.inputs(float("inf"))
        outputs = self.model(**{name: value for name, value in inputs.items() if name not in own})
        if not objectives:
            return outputs
        core = self.get_base_model()
        losses = {name: self.parts[name](core, outputs, inputs) for name in self.active}
        known = {name: outputs[name] for name in outputs if name in ObjectiveOutput.__dataclass_fields__}
        return ObjectiveOutput(**known, objective_losses=losses)

    def begin(self, progress: float) -> None:
        """A run begins at this share of training: none is active, those that start later wait."""
        self.active = ()
        for _, part in self._named():
            if part.starts_at > progress:
                part.wait()

    def activate(self, progress: float) -> None:
        """Choose the objectives of the step that comes, at this share of training; those that are new join."""
        before = self.active
        self.active = tuple(name for name, part in self._named() if part.starts_at <= progress)
        for name, part in self._named():
            if name in self.active and name not in before:
                part.join(self.get_base_model())

    def inputs(self, progress: float) -> set[str]:
        """Names of what the objectives of this share of training need."""
        return {name for _, part in self._named() if part.starts_at <= progress for name in part.inputs}

    def after_step(self) -> None:
        core = self.get_base_model()
        for name, part in self._named():
            if name in self.active:
                part.after_step(core)

    def figures(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """What the objectives of now show in the logs, each name behind its objective's."""
        return {
            f"{name}_{figure}": value
            for name, part in self._named()
            if name in self.active
            for figure, value in part.figures(reduce).items()
        }

    def _named(self) -> list[tuple[str, TrainedObjective]]:
        return [(name, cast(TrainedObjective, part)) for name, part in self.parts.items()]


class ObjectiveSteps(TrainerCallback):
    """Tells the objectives of a model how far training is, and that the optimizer has made a step.

    Args:
        model: holds the objectives.
        elapsed: gives the share of a time budget that is used up; training is as far as the larger share. None
            without such a budget.
        want: told the inputs that will be needed, so that others need not be made.
        ahead: steps for which batches may have been made already.
    """

    def __init__(
        self,
        model: ObjectiveModel,
        elapsed: Callable[[], float] | None = None,
        want: Callable[[Collection[str]], None] | None = None,
        ahead: int = 0,
    ):
        self.model, self.elapsed, self.want, self.ahead = model, elapsed, want, ahead

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.model.begin(state.global_step / state.max_steps)  # nothing is used up yet of a time budget
        self._want(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        elapsed = 0.0 if self.elapsed is None else self.elapsed()
        self.model.activate(max(elapsed, state.global_step / state.max_steps))
        self._want(state)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.model.after_step()

    def _want(self, state: TrainerState) -> None:
        if self.want is not None:
            # Nobody knows how far a time budget will be some steps from now.
            later = 1.0 if self.elapsed is not None else (state.global_step + self.ahead) / state.max_steps
            self.want(self.model.inputs(later))
