"""What is made sure of before the first step, so that a run does not end after an epoch for what was wrong before it.

Checked are the folder and the checkpoint (`run_folder.py`, `run_identity.py`), the name of the metric that chooses the
best model, and every row of the evaluation data, by reading it. An evaluation that fails all the same, or too many bad
training samples, leave a checkpoint of their step.
"""

from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..arguments import SiglipExtTrainingArguments
from ..data.dataset import CaptionedRows, ImageTextDataset
from ..data.samples import TooManyBadSamples
from ..data.streaming import ImageTextStream
from .backend import Backend
from .checkpoint import AtomicCheckpoints
from .devices import share_of_the_host
from .run_folder import STATE, check_unused, checkpoint_to_resume, clear_pictures
from .run_identity import Identity, run_identity


logger = logging.get_logger(__name__)
# Of every evaluation, whatever `compute_metrics` gives.
ALWAYS = ("loss", "loss_pairs", "runtime", "samples_per_second", "steps_per_second")


class CheckedRun(AtomicCheckpoints):
    """The part of `SiglipExtTrainer` that begins a run."""

    further_identity: Identity = {}
    """What makes a run this one besides model, data and arguments."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: `args.resume_from_checkpoint` unless given; see `checkpoint_to_resume`.
            trial, ignore_keys_for_eval: as for `transformers.Trainer`.

        Raises:
            OSError: `output_dir` holds another run, or no checkpoint to resume from.
            ValueError: the checkpoint is of another run; evaluation data that cannot be read; a metric that no
                evaluation gives.
        """
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        folder = Path(self._get_output_dir(trial))
        checkpoint = checkpoint_to_resume(wanted, folder)
        if checkpoint is None:
            check_unused(folder)
        data = self.train_dataset, getattr(self.processing_class, "tokenizer", None), self.data_collator
        identity = run_identity(self.model, self.loss_name, self.args, *data)
        self.identity = identity | self.about_objectives() | self.further_identity
        if checkpoint is not None:
            self.check_checkpoint(checkpoint)
            check_steps(checkpoint, self.args.max_steps)
        self.check_evaluation()
        if self.args.should_save and (checkpoint is None or checkpoint.resolve().parent != folder.resolve()):
            clear_pictures(folder)
        chosen = None if checkpoint is None else str(checkpoint)
        return super().train(chosen, trial, ignore_keys_for_eval)

    def about_objectives(self) -> Identity:
        """What else is trained for, as a part of the run's identity."""
        return {}

    def check_evaluation(self) -> None:
        """Read the evaluation data once, and check the metric that chooses the best model.

        Raises:
            ValueError: a row that cannot be read, a metric that no evaluation gives.
        """
        args = self.args
        if self.eval_dataset is None or (args.eval_strategy == "no" and not args.eval_on_start):
            return
        parts = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        for part in parts.values():
            self._check_readable(part)
        names = getattr(self.compute_metrics, "names", None if self.compute_metrics is not None else ())
        prefixes = [f"{name}_" if name else "" for name in parts]
        if names is not None:
            check_metric(args, [f"{prefix}{name}" for prefix in prefixes for name in names], prefixes)
        elif not (is_known(args, prefixes) or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Only a call can tell what a function gives, and these make a model ready for it in training alone.
            found = self.evaluate()
            check_metric(args, [name.removeprefix("eval_") for name in found], prefixes)

    def _check_readable(self, part: Any) -> None:
        args = self.args
        if isinstance(part, ImageTextDataset):
            part.leave_out_unreadable(*share_of_the_host(args.device))
            if not len(part):
                raise ValueError(f"the evaluation data has no example that can be used{part.first_left_out()}")
        elif not isinstance(part, CaptionedRows) and isinstance(part, Sized) and hasattr(part, "__getitem__"):
            own = range(args.process_index, len(part), args.world_size)
            collate = getattr(self.data_collator, "for_evaluation", cast(Any, self.data_collator))
            loader = DataLoader(
                cast(Any, part),
                sampler=own,
                batch_size=None,
                collate_fn=lambda row: collate([in_its_place(row)]),
                generator=torch.Generator(),  # leaves torch's own as it is
            )
            rows = iter(loader)
            for index in own:
                try:
                    next(rows)
                except ValueError as error:
                    raise ValueError(f"evaluation example {index} cannot be used: {error}") from error

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        done = False
        try:
            metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
            done = True
            return metrics
        finally:
            if not done:
                self._rescue(trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # of a finished run that is resumed: Trainer adds a step
            self.control.should_training_stop = True
            return
        try:
            super()._run_epoch(*args, **kwargs)
        except TooManyBadSamples:
            self._rescue(kwargs.get("trial"))
            raise

    def _rescue(self, trial: Any) -> None:
        """Save what was trained, before the run ends with an error."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        # Of several processes one alone may fail, and cannot save without the others.
        if self.args.world_size == 1 and self.state.global_step > 0 and not folder.exists():
            self._save_checkpoint(self.model, trial)


def check_construction(args: SiglipExtTrainingArguments, backend: Backend, given: Mapping[str, Any]) -> None:
    """Refuse what a Trainer cannot train by as it was asked to.

    Args:
        backend: of the device of `args`.
        given: what else the Trainer is made with, by name.

    Raises:
        RuntimeError, ValueError: naming it and the remedy.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process mean nn.DataParallel, which computes the loss on each GPU's slice "
            "only. Start one process per GPU (`torchrun --nproc-per-node N` or `accelerate launch`), or show this "
            "process a single GPU."
        )
    if given.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func is not supported: override `compute_loss` in a subclass instead")
    train = given.get("train_dataset")
    if isinstance(train, IterableDataset) and not isinstance(train, ImageTextStream):
        logger.warning(
            "%s: Trainer trains on the short batch that ends it, counts it whole, and does not find its place in it "
            "again after a first pass; ImageTextStream (of a streaming dataset, or an object with `rows`) has whole "
            "batches and resumes exactly",
            type(train).__name__,
        )
    backend.check_launch(
        args.device, args.per_device_train_batch_size, args.mini_batch_size, args.xla_shard_parameters
    )
    if args.halve_batches_at is not None and backend.one_graph:
        raise ValueError("halve_batches_at does not work under torch_xla's SPMD, where a step is one graph: unset it")
    if given.get("model_init") is not None and (args.lock_towers or args.ema_decay is not None):
        raise ValueError("lock_towers and ema_decay need the model itself: pass model, not model_init")


def in_its_place(row: Any) -> Any:
    """A row of evaluation data; one that stands in for another that cannot be read, as in training, is an error."""
    skipped = row["sample"]["skipped"] if isinstance(row, Mapping) and "sample" in row else []
    if skipped:
        raise ValueError(skipped[0][1])
    return row


def check_steps(checkpoint: Path, max_steps: int) -> None:
    """
    Raises:
        ValueError: the checkpoint lies beyond the end of the run.
    """
    step = TrainerState.load_from_json(str(checkpoint / STATE)).global_step
    if 0 < max_steps < step:
        raise ValueError(f"{checkpoint} is at step {step}, beyond max_steps={max_steps}: raise max_steps")


def is_known(args: SiglipExtTrainingArguments, prefixes: Iterable[str]) -> bool:
    """Whether every evaluation gives the metric that chooses the best model, or none is asked for."""
    wanted, known = args.metric_for_best_model, [f"{prefix}{name}" for prefix in prefixes for name in ALWAYS]
    return wanted is None or wanted.removeprefix("eval_") in known


def check_metric(args: SiglipExtTrainingArguments, names: Iterable[str], prefixes: Iterable[str] = ("",)) -> None:
    """Check that evaluations give the metric that chooses the best model.

    Args:
        names: of the metrics that `compute_metrics` gives.
        prefixes: of several evaluation sets.

    Raises:
        ValueError: they do not; with the names of those they give.
    """
    wanted, names = args.metric_for_best_model, list(names)
    if args.eval_strategy == "no" or is_known(args, prefixes) or str(wanted).removeprefix("eval_") in names:
        return
    given = [f"{prefix}{name}" for prefix in prefixes for name in ALWAYS[:1]] + [n for n in names if n not in ALWAYS]
    raise ValueError(f"metric_for_best_model={wanted!r} is none that an evaluation gives: {', '.join(given)}")
