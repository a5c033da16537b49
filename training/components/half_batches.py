"""Half the batch and twice the updates at the longest images, as SigLIP 2 trains NaFlex at 1,024 patches (sec. 2.4.2).

A batch that was drawn stays one step of the schedule and of all that counts, so nothing else has to know of it. It is
trained on in two halves, with an update after each. The halves are its even and its odd places, which are the same
pairs for any number of processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..arguments import SiglipExtTrainingArguments
from .grad_cache import has_rows, split_batch


def is_halved(inputs: dict, length: int | None) -> bool:
    """Whether a batch has images of at least so many patches, padding counted."""
    return length is not None and inputs["pixel_values"].shape[1] >= length


def in_halves(inputs: dict, train: Callable[[dict], torch.Tensor], update: Callable[[], None]) -> torch.Tensor:
    """Gradients of one half, an update, and gradients of the other; the mean of their losses."""
    rows = len(inputs["input_ids"])
    order = [*range(0, rows, 2), *range(1, rows, 2)]
    sorted_inputs = {name: in_order(value, order) for name, value in inputs.items()}
    first, second = split_batch(sorted_inputs, rows // 2)
    loss = train(first)
    update()
    return (loss + train(second)) / 2


def in_order(value: Any, order: list[int]) -> Any:
    """Rows of a tensor or list in another order; what has no rows stays."""
    if not has_rows(value, len(order)):
        return value
    return value[order] if isinstance(value, torch.Tensor) else [value[place] for place in order]


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Callable[[nn.Module], Any],
    args: SiglipExtTrainingArguments,
) -> None:
    """One between two of Trainer's own."""
    if args.max_grad_norm > 0:
        clip(model)
    optimizer.step()
    model.zero_grad()
