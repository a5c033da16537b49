"""What a person needs to see of a run, measured on the device and read only at logging steps."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .graph_input import graph_input
from .towers import HEAD, loss_head, part_of, whole


NAMES_KEPT = 8


def examples_seen(args: TrainingArguments, state: TrainerState, batches: int | None) -> int:
    """Over all processes since the first step of the run, resumed or not.

    Args:
        batches: those of an epoch in a process, of which the last update has what is left; None for data without end.
    """
    accumulated = args.gradient_accumulation_steps
    steps, taken = state.global_step, 0
    if batches is not None:
        epochs, steps = divmod(steps, -(-batches // accumulated))
        taken = epochs * batches
    return (taken + steps * accumulated) * args.train_batch_size * args.world_size


class Monitor(TrainerCallback):
    """Collects figures during a step and gives them at the logging step.

    - `examples_per_second` and `examples_seen`, over all processes.
    - `temperature`, `bias`, and the mean logit of positive and negative pairs of the last global batch. Means over all
      pairs need no matrix: the sum of all cosines is the product of the two sums of embeddings. Positive is here an
      image with its own text.
    - `positive_pairs`, where rows can belong together: how many pairs of an image and a text of the last global batch
      were positives in the loss.
    - `loss_<objective>` of the last step, for each objective beside the contrastive one.
    - `grad_norm_<part>` of the last step, before clipping, for each tower (with its adapter) and the loss head.
    - The first step whose loss was not finite, and the samples it had.

    Args:
        core: gives the dual model in training without wrappers, `core_model`.
        every_step: measure gradients at every step instead of only at those that are logged.
    """

    def __init__(self, core: Callable[[], nn.Module], every_step: bool = False):
        self.core, self.every_step = core, every_step
        self.started: tuple[float, int] | None = None
        self.batches_of_epoch: int | None = None
        self.batches: deque[tuple[int, list, int]] = deque()
        self.sums: torch.Tensor | None = None
        self.pair_ids: torch.Tensor | None = None
        self.grad_norms: dict[str, torch.Tensor] = {}
        self.first_bad: torch.Tensor | None = None
        self.objectives_of = -1
        self.objective_sums: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.started = (time.perf_counter(), examples_seen(args, state, self.batches_of_epoch))

    def batch(self, step: int, names: list) -> None:
        """Remember the first samples of a batch by name."""
        self.batches.append((step, names[:NAMES_KEPT], len(names)))

    @torch.no_grad()
    def pairs(
        self,
        step: int,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        loss: torch.Tensor,
        pair_ids: torch.Tensor | None = None,
    ) -> None:
        """What a step has computed for a batch, from normalised embeddings (B, D): sums that add up over processes."""
        self.pair_ids = pair_ids
        dtype = torch.float32 if image_embeds.device.type in ("mps", "xla") else torch.float64
        images, texts = (embeds.detach().sum(0, dtype=dtype) for embeds in (image_embeds, text_embeds))
        positives = (image_embeds.detach() * text_embeds.detach()).sum(dtype=dtype)
        self.sums = torch.cat([images, texts, positives[None], positives.new_full((1,), len(image_embeds))])
        self.loss(step, loss)

    @torch.no_grad()
    def objectives(self, step: int, losses: Mapping[str, torch.Tensor], examples: int) -> None:
        """The mean losses of objectives beside the contrastive one, for some examples of a step."""
        if step != self.objectives_of:
            self.objectives_of, self.objective_sums = step, {}
        for name, loss in losses.items():
            value = loss.detach() * examples
            both = torch.stack([value, torch.full_like(value, examples)])
            self.objective_sums[name] = self.objective_sums.get(name, torch.zeros_like(both)) + both

    @torch.no_grad()
    def loss(self, step: int, value: torch.Tensor) -> None:
        if self.first_bad is None:
            self.first_bad = torch.full((), -1, dtype=torch.int64, device=value.device)
        bad = ~torch.isfinite(value.detach()).all() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, graph_input(step, self.first_bad), self.first_bad)

    def _measures(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the gradients of the step that is under way will be logged."""
        step = state.global_step + 1
        if self.every_step or args.logging_strategy == "epoch" or (step == 1 and args.logging_first_step):
            return True
        return args.logging_strategy == "steps" and step % state.logging_steps == 0

    @torch.no_grad()
    def gradients(self, args: TrainingArguments, state: TrainerState, scaler: torch.amp.GradScaler | None) -> None:
        """Gradient norm of each tower and of the loss head, where they will be logged.

        Args:
            scaler: what gradients are multiplied by.
        """
        if not self._measures(args, state):
            return
        scale = 1.0 if scaler is None else scaler.get_scale()
        parts: dict[str, list[torch.Tensor]] = {}
        for name, parameter in self.core().named_parameters():
            if parameter.grad is not None:
                part = (part_of(name) or HEAD).removesuffix("_adapter")
                parts.setdefault(part, []).append(parameter.grad)
        self.grad_norms = {}
        for part, grads in parts.items():
            self.grad_norms[part] = whole(nn.utils.get_total_norm(grads)) / scale

    def figures(
        self,
        seen: int,
        reduce: Callable[[torch.Tensor], torch.Tensor],
        gather: Callable[[torch.Tensor], Any] = lambda tensor: tensor,
    ) -> dict[str, float]:
        """Everything since the last call.

        Args:
            seen: examples, see `examples_seen`.
            reduce: sums a tensor over the processes.
            gather: puts those of all processes in a row.
        """
        scale, bias = loss_head(self.core())
        logit_scale, logit_bias = whole(scale.detach()).item(), None if bias is None else whole(bias.detach()).item()
        now, before = time.perf_counter(), self.started
        figures: dict[str, float] = {"examples_seen": seen}
        if before is not None:
            figures["examples_per_second"] = round((seen - before[1]) / (now - before[0]), 2)
        self.started = (now, seen)
        figures["temperature"] = torch.tensor(logit_scale, dtype=torch.float64).exp().item()  # math.exp overflows
        if logit_bias is not None:
            figures["bias"] = logit_bias
        if self.sums is not None:
            total = reduce(self.sums).tolist()
            width, rows = (len(total) - 2) // 2, total[-1]
            images, texts, positives = total[:width], total[width : 2 * width], total[-2]
            negatives = sum(a * b for a, b in zip(images, texts)) - positives
            shift = logit_bias or 0.0
            figures["positive_logit"] = positives / rows * figures["temperature"] + shift
            if rows > 1:
                figures["negative_logit"] = negatives / (rows * (rows - 1)) * figures["temperature"] + shift
        if self.pair_ids is not None:
            figures["positive_pairs"] = int(gather(self.pair_ids).unique(return_counts=True)[1].square().sum())
        for name, sums in self.objective_sums.items():
            summed, examples = reduce(sums).tolist()
            figures[f"loss_{name}"] = summed / examples
        figures |= {f"grad_norm_{part}": norm.item() for part, norm in self.grad_norms.items()}
        self.grad_norms = {}
        return figures

    def check(self, logged: float = 0.0) -> None:
        """
        Args:
            logged: the loss averaged over processes.

        Raises:
            FloatingPointError: if a loss or gradient norm was not finite, naming its step and samples.
        """
        step = -1 if self.first_bad is None else int(self.first_bad)
        if step < 0 and math.isfinite(logged):
            self.batches.clear()
            return
        names, count = next(((names, n) for s, names, n in self.batches if s == step), ([], 0))
        where = f"of step {step}" if step >= 0 else "of another process"
        samples = f" (its {count} samples begin with {names})" if names else ""
        raise FloatingPointError(
            f"the loss or its gradient {where} is not finite{samples}. The run stops here and keeps its last "
            "checkpoint: look at that batch, lower the learning rate, or use bf16 in place of fp16"
        )
