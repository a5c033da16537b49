"""Checkpoints that are whole or not there, with what Trainer forgets: loss sums, data positions, averaged weights.

Trainer writes a checkpoint file by file into its final folder, so a run that is killed meanwhile leaves one that looks
like any other. Here it is written into `checkpoint.partial/` and renamed when every process has written its part.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints


PARTIAL = "checkpoint.partial"
PROGRESS = "progress.json"


class AtomicCheckpoints(Trainer):
    """The part of `SiglipExtTrainer` that writes checkpoints; subclasses add files in `save_extra`."""

    _staging: Path | None = None
    _push_after_rename = False

    def save_extra(self, folder: Path) -> None:
        """Write what Trainer does not; called in every process, with the folder there."""

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._push_after_rename = True  # uploads run in the background and would lose the folder

    def _save_checkpoint(self, model, trial) -> None:
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
            publish(staging / name, run / name)
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero() and (staging / name).exists():
            publish(staging / name, run / name)
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


def publish(folder: Path, target: Path) -> None:
    """Rename a complete folder to its final name, in place of an older one of that name; on disk before it is seen."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if target.exists():
        target.rename(folder.with_name(f"{target.name}.replaced"))
    folder.rename(target)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str) -> dict:
    """
    Raises:
        FileNotFoundError: with the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return json.loads(path.read_text(encoding="utf-8"))


class LossSums:
    """The losses since the last log line, which Trainer drops when it resumes between two lines."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.restored: dict | None = None

    def state(self) -> dict:
        trainer = self.trainer
        return {"loss_sum": trainer._tr_loss.item(), "last_logged": trainer._globalstep_last_logged}

    def load(self, state: dict) -> None:
        """Remember the sums until training begins; Trainer resets its own shortly before."""
        self.restored = state

    def apply(self) -> None:
        if self.restored is None:
            return
        trainer, state = self.trainer, self.restored
        trainer._tr_loss = torch.tensor(state["loss_sum"], device=trainer.args.device)
        # Trainer's final `train_loss` is the mean over the steps since the resume, to which this sum does not belong.
        trainer._total_loss_scalar = -state["loss_sum"]
        trainer._globalstep_last_logged = state["last_logged"]
        self.restored = None
