"""Training for a given time: a learning-rate schedule in wall-clock time, and the callback that ends the run.

A schedule in steps needs the step time beforehand, and on a shared machine that changes. Here progress is the larger
of the shares of time and of steps used up, so the learning rate always reaches its end exactly when training stops.
"""

import math
import time

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


DECAYS = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant_with_warmup": lambda progress: 1.0,
    "constant": lambda progress: 1.0,
}


class TimeBudget(TrainerCallback):
    """Measures the share of `max_seconds` used since training began and stops training at the end of it."""

    def __init__(self, max_seconds: float):
        self.max_seconds = max_seconds
        self.started: float | None = None

    def progress(self) -> float:
        """Share of the budget used up, 0 (also before training) to 1."""
        if self.started is None:
            return 0.0
        return min(1.0, (time.monotonic() - self.started) / self.max_seconds)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.progress() >= 1.0:
            control.should_training_stop = True


def check_budgeted(kind: str) -> None:
    """
    Raises:
        ValueError: a schedule without a form in wall-clock time.
    """
    if kind not in DECAYS:
        raise ValueError(
            f"lr_scheduler_type={kind!r} cannot be combined with max_seconds; choose one of {sorted(DECAYS)}"
        )


def budgeted_schedule(optimizer: Optimizer, budget: TimeBudget, kind: str, warmup: float, max_steps: int) -> LambdaLR:
    """Learning-rate schedule over the larger of the shares of time and of steps used up.

    Args:
        optimizer: its base learning rates are the peaks.
        budget: the clock.
        kind: one of `DECAYS`.
        warmup: as `TrainingArguments.warmup_steps`: a number of steps if ≥ 1, else a share of the run.
        max_steps: upper limit of optimizer steps.

    Raises:
        ValueError: if `kind` has no form in wall-clock time.
    """
    check_budgeted(kind)
    decay = DECAYS[kind]

    def factor(step: int) -> float:
        progress = max(budget.progress(), step / max_steps)
        if warmup >= 1:
            warm = step / warmup
        elif warmup > 0:
            warm = progress / warmup
        else:
            warm = 1.0
        return min(1.0, warm) * decay(min(1.0, progress))

    return LambdaLR(optimizer, factor)
