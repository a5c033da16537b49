"""Checkpoints that are whole or not there, with what Trainer forgets: loss sums, data positions, averaged weights.

Trainer writes a checkpoint file by file into its final folder, so a run that is killed meanwhile leaves one that looks
like any other. Here it is written into `checkpoint.partial/` and renamed when every process has written its part.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from modeling_siglip_ext.files import put_in_place, read_json, write_json

from .ema import WeightAverage
from .hub import HubPushes


PARTIAL = "checkpoint.partial"


class Progress(Protocol):
    """What a process must know again when it resumes, in terms of JSON."""

    def state(self) -> dict: ...

    def load(self, state: dict) -> None: ...


class AtomicCheckpoints(HubPushes):
    """The part of `SiglipExtTrainer` that writes and reads checkpoints."""

    progress: Mapping[str, Progress] = {}
    """Saved for each process, by name."""
    average: WeightAverage | None = None
    checks: Sequence[Callable[[], None]] = ()
    """Called before a checkpoint is begun; what raises there leaves the last one the newest."""
    _staging: Path | None = None
    _push_after_rename = False

    def save_extra(self, folder: Path) -> None:
        """Write what Trainer does not; called in every process, with the folder there."""
        write_json(self._progress_file(folder), {name: part.state() for name, part in self.progress.items()})
        if self.average is not None and self.args.should_save:
            self.average.save(folder)

    def _progress_file(self, folder: Path) -> Path:
        return folder / f"progress_{self.args.process_index}.json"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.average is not None:
            self.average.load(Path(checkpoint), self.state.global_step)
        saved = read_json(
            self._progress_file(Path(checkpoint)),
            "resume with as many processes as the checkpoint was written by, and with this Trainer",
        )
        for name, part in self.progress.items():
            part.load(saved[name])

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best, step = self.state.best_model_checkpoint, self.state.best_global_step
        if self.average is not None and best is not None and step is not None:
            self.average.load(Path(best), step)

    def _issue_warnings_after_load(self, load_result) -> None:
        super()._issue_warnings_after_load(load_result)
        ignored = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        missing = [name for name in load_result.missing_keys if name not in ignored]
        if missing:
            raise RuntimeError(
                f"the checkpoint lacks {len(missing)} parameters of the model, the first of them {missing[:5]}; "
                "resuming from it would train a partly fresh model"
            )

    def loss_sums(self) -> dict:
        """What Trainer has summed since its last log line."""
        return {"loss_sum": self._tr_loss.item(), "last_logged": self._globalstep_last_logged}

    def set_loss_sums(self, sums: dict) -> None:
        self._tr_loss = torch.tensor(sums["loss_sum"], device=self.args.device)
        # Trainer's final `train_loss` is the mean over the steps since the resume, to which this sum does not belong.
        self._total_loss_scalar = -sums["loss_sum"]
        self._globalstep_last_logged = sums["last_logged"]

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._push_after_rename = True  # uploads run in the background and would lose the folder

    def _save_checkpoint(self, model, trial) -> None:
        for check in self.checks:
            check()
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staging = run / PARTIAL
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._staging, self._push_after_rename = staging, False
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        (staging / name).mkdir(parents=True, exist_ok=True)
        self.save_extra(staging / name)
        best = self.state.best_global_step
        if (best and (run / f"checkpoint-{best}").exists()) or best == self.state.global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        # One process a machine: where machines share no disk, each has its own part of the checkpoint.
        if self.args.should_save:
            put_in_place(staging / name, run / name)
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero() and (staging / name).exists():
            put_in_place(staging / name, run / name)
        if self._push_after_rename:
            super()._push_from_checkpoint(str(run / name))
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


class LossSums(TrainerCallback):
    """The losses since the last log line, which Trainer drops when it resumes between two lines.

    Args:
        read, write: `AtomicCheckpoints.loss_sums` and `set_loss_sums`.
    """

    def __init__(self, read: Callable[[], dict], write: Callable[[dict], None]):
        self.read, self.write = read, write
        self.restored: dict | None = None

    def state(self) -> dict:
        return self.read()

    def load(self, state: dict) -> None:
        """Remember the sums until training begins; Trainer resets its own shortly before."""
        self.restored = state

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.restored is not None:
            self.write(self.restored)
            self.restored = None
