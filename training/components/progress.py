"""A progress bar for people: one bar, the current loss beside it, one readable line per evaluation."""

import sys

from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length

from .schedule import TimeBudget


SHOWN = {
    "eval_loss": "held-out loss {:.3f}",
    "eval_image_to_text_recall@1": "image→text R@1 {:.1%}",
    "eval_image_to_text_recall@5": "R@5 {:.1%}",
    "eval_text_to_image_recall@1": "text→image R@1 {:.1%}",
    "eval_text_to_image_recall@5": "R@5 {:.1%}",
}


class ReadableProgress(ProgressCallback):
    """Trainer's progress bar, counting seconds where the run has a time budget, without dumps of dictionaries."""

    def __init__(self, budget: TimeBudget | None):
        super().__init__()
        self.budget = budget

    @classmethod
    def replace_in(cls, trainer: Trainer) -> None:
        """Use this progress bar in place of Trainer's own."""
        callbacks = trainer.callback_handler.callbacks
        budget = next((callback for callback in callbacks if isinstance(callback, TimeBudget)), None)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(cls(budget))

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = 0
        if not state.is_world_process_zero:
            return
        if self.budget is None:
            self.training_bar = tqdm(total=state.max_steps, desc="training", unit="step", dynamic_ncols=True)
        else:
            layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
            self.training_bar = tqdm(
                total=self.budget.max_seconds, desc="training", bar_format=layout, dynamic_ncols=True
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.budget is None:
            super().on_step_end(args, state, control, **kwargs)
        elif self.training_bar is not None:
            self.training_bar.update(self.budget.progress() * self.budget.max_seconds - self.training_bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not (state.is_world_process_zero and has_length(eval_dataloader)):
            return
        if self.prediction_bar is None:
            total = len(eval_dataloader)
            self.prediction_bar = tqdm(total=total, desc="evaluating", unit="batch", leave=False, dynamic_ncols=True)
        self.prediction_bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"step {state.global_step}, loss {logs['loss']:.3f}")
        shown = [text.format(logs[name]) for name, text in SHOWN.items() if name in logs]
        shown += [
            f"zero-shot {name.removeprefix('eval_zero_shot_')} {value:.1%}"
            for name, value in logs.items()
            if name.startswith("eval_zero_shot_")
        ]
        if shown:
            self.training_bar.write(f"step {state.global_step}: " + ", ".join(shown))
            sys.stdout.flush()  # for those who follow a log file
