"""What a person needs to see of a run, measured on the device and read only at logging steps."""

import math
import time
from collections import deque

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .graph_input import graph_input


NAMES_KEPT = 8


class Monitor:
    """Collects figures during a step and gives them at the logging step.

    - `examples_per_second` and `examples_seen`, over all processes.
    - `temperature`, `bias`, and the mean logit of positive and negative pairs of the last global batch. Means over all
      pairs need no matrix: the sum of all cosines is the product of the two sums of embeddings.
    - `grad_norm_<part>` of the last step, before clipping, for each tower and the loss head.
    - The first step whose loss was not finite, and the samples it had.
    """

    def __init__(self):
        self.started: tuple[float, int] | None = None
        self.batches: deque[tuple[int, list, int]] = deque()
        self.sums: torch.Tensor | None = None
        self.grad_norms: dict[str, torch.Tensor] = {}
        self.first_bad: torch.Tensor | None = None

    def start(self, examples_seen: int) -> None:
        self.started = (time.perf_counter(), examples_seen)

    def batch(self, step: int, names: list) -> None:
        """Remember the first samples of a batch by name."""
        self.batches.append((step, names[:NAMES_KEPT], len(names)))

    @torch.no_grad()
    def embeddings(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> None:
        """From normalised embeddings (B, D): sums that add up over processes."""
        dtype = torch.float32 if image_embeds.device.type in ("mps", "xla") else torch.float64
        images, texts = (embeds.detach().sum(0, dtype=dtype) for embeds in (image_embeds, text_embeds))
        positives = (image_embeds.detach() * text_embeds.detach()).sum(dtype=dtype)
        self.sums = torch.cat([images, texts, positives[None], positives.new_full((1,), len(image_embeds))])

    @torch.no_grad()
    def loss(self, step: int, value: torch.Tensor) -> None:
        if self.first_bad is None:
            self.first_bad = torch.full((), -1, dtype=torch.int64, device=value.device)
        bad = ~torch.isfinite(value.detach()).all() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, graph_input(step, self.first_bad), self.first_bad)

    @torch.no_grad()
    def gradients(self, model: nn.Module, scale: float = 1.0) -> None:
        """Gradient norm of each tower and of the loss head; `scale` is what gradients were multiplied by."""
        parts: dict[str, list[torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                part = next((tower for tower in ("vision", "text") if f"{tower}_" in name), "head")
                parts.setdefault(part, []).append(parameter.grad)
        self.grad_norms = {}
        for part, grads in parts.items():
            norm = nn.utils.get_total_norm(grads)
            self.grad_norms[part] = (norm.full_tensor() if isinstance(norm, DTensor) else norm) / scale

    def figures(self, examples_seen: int, logit_scale: float, logit_bias: float | None, reduce) -> dict[str, float]:
        """Everything since the last call; `reduce` sums a tensor over the processes."""
        now, before = time.perf_counter(), self.started
        figures: dict[str, float] = {"examples_seen": examples_seen}
        if before is not None:
            figures["examples_per_second"] = round((examples_seen - before[1]) / (now - before[0]), 2)
        self.started = (now, examples_seen)
        figures["temperature"] = math.exp(logit_scale)
        if logit_bias is not None:
            figures["bias"] = logit_bias
        if self.sums is not None:
            total = reduce(self.sums).tolist()
            width, rows = (len(total) - 2) // 2, total[-1]
            images, texts, positives = total[:width], total[width : 2 * width], total[-2]
            negatives = sum(a * b for a, b in zip(images, texts)) - positives
            bias = logit_bias or 0.0
            figures["positive_logit"] = positives / rows * figures["temperature"] + bias
            if rows > 1:
                figures["negative_logit"] = negatives / (rows * (rows - 1)) * figures["temperature"] + bias
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
