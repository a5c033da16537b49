"""Checkpoints that are whole or not there, with what Trainer forgets: loss sums, data positions, averaged weights.

A run can be resumed by another number of processes: its place in the data, and what is random, follow from the seed
and the step, and what each process counted is merged.

Trainer writes a checkpoint file by file into its final folder, so a run that is killed meanwhile leaves one that looks
like any other. Here it is written into `checkpoint.partial/` and renamed when every process has written its part.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import rotate_checkpoints

from modeling_siglip_ext.files import put_in_place, read_json, write_json
from modeling_siglip_ext.sentence_embedding import save_settings

from .adapters import is_bare, load_bare
from .card import output_folder
from .ema import WeightAverage
from .hub import HubPushes
from .milestones import Milestones
from .run_folder import STATE
from .run_identity import Identity, check_same_run
from .towers import core_model


PARTIAL = "checkpoint.partial"
PROCESSES, RUN = "processes", "run"
REMEDY = "copy the checkpoint again, or name an earlier one in resume_from_checkpoint"


class Progress(Protocol):
    """What a process must know again when it resumes, in terms of JSON."""

    def state(self) -> dict: ...

    def load(self, state: dict) -> None: ...

    def merged(self, states: Sequence[dict], process: int) -> dict:
        """The state with which this process goes on, of a run that had other processes."""
        ...


class AtomicCheckpoints(HubPushes):
    """The part of `SiglipExtTrainer` that writes and reads checkpoints."""

    progress: Mapping[str, Progress] = {}
    """Saved for each process, by name."""
    average: WeightAverage | None = None
    checks: Sequence[Callable[[], None]] = ()
    """Called before a checkpoint is begun; what raises there leaves the last one the newest."""
    identity: Identity = {}
    """What makes a run this one; see `run_identity`."""
    _staging: Path | None = None
    _push_after_rename = False

    def save_extra(self, folder: Path) -> None:
        """Write what Trainer does not; called in every process, with the folder there."""
        states = {name: part.state() for name, part in self.progress.items()}
        about = {PROCESSES: self.args.world_size, RUN: self.identity}
        write_json(progress_file(folder, self.args.process_index), about | states)
        if self.average is not None and self.args.should_save:
            self.average.save(folder)

    def check_checkpoint(self, checkpoint: Path) -> None:
        """
        Raises:
            FileNotFoundError: another Trainer wrote it, or a part is missing.
            ValueError: it is of another run, or a part is damaged.
        """
        check_parts(checkpoint)
        (first, *_) = read_progress(checkpoint, self.args.process_index, self.args.world_size)
        check_same_run(checkpoint, first[RUN], self.identity)

    def save_checkpoint(self) -> Path:
        """Write a checkpoint of the step that training has come to; its folder."""
        self._save_checkpoint(self.model, None)
        return Path(self._get_output_dir(None)) / f"checkpoint-{self.state.global_step}"

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.average is not None:
            self.average.load(Path(checkpoint), self.state.global_step)
        process, processes = self.args.process_index, self.args.world_size
        saved = read_progress(Path(checkpoint), process, processes)
        same = saved[0][PROCESSES] == processes
        for name, part in self.progress.items():
            states = [each[name] for each in saved]
            part.load(states[0] if same else part.merged(states, process))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random state of this process; of a run that had other processes one that follows from seed and step."""
        if checkpoint is not None:
            process, processes = self.args.process_index, self.args.world_size
            if read_progress(Path(checkpoint), process, processes)[0][PROCESSES] != processes:
                key = f"{self.args.seed}/{self.state.global_step}/{process}"
                set_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little"))
                return
        super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if is_bare(self.model) and not self.is_fsdp_enabled:
            load_bare(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best, step = self.state.best_model_checkpoint, self.state.best_global_step
        if best is not None and is_bare(self.model) and not self.is_fsdp_enabled:
            load_bare(self.model, Path(best))
        else:
            super()._load_best_model()
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        plugin: Any = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        # Of checkpoints in shards Trainer would make no model, not even the one that is trained.
        if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type) and not _internal_call:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        config: Any = core_model(self.model).config
        # beside an adapter and stock classes, too: sentence-transformers would pad texts to the longest otherwise
        if hasattr(config, "text_config") and "siglip" in config.model_type:
            save_settings(config, output_dir or output_folder(self.args))

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
        if self.args.should_save:
            Milestones(self.args.keep_at).keep(run / name, self.state.global_step, self.state.max_steps)
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


def progress_file(folder: Path, process: int) -> Path:
    return folder / f"progress_{process}.json"


def check_parts(checkpoint: Path) -> None:
    """Check that what Trainer wrote is all there and whole: where the schedule is missing, it would pass over the
    optimiser's state in silence.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a part is damaged.
    """
    read_json(checkpoint / STATE, REMEDY)
    if (checkpoint / OPTIMIZER_NAME).is_file() and not (checkpoint / SCHEDULER_NAME).is_file():
        raise FileNotFoundError(f"{checkpoint / SCHEDULER_NAME} is missing: {REMEDY}")
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is damaged (cut off, or no file of torch): {REMEDY}")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error


def read_progress(checkpoint: Path, process: int, processes: int) -> list[dict]:
    """What the process of a checkpoint knew that this one continues; of all its processes, if they were others.

    Raises:
        FileNotFoundError: another Trainer wrote it, or a part is missing.
        ValueError: a part is damaged.
    """
    remedy = "it is no checkpoint of this Trainer, or only a part of one"
    own = progress_file(checkpoint, process)  # where machines share no disk, each has the files of its processes
    first = read_json(own if own.is_file() else progress_file(checkpoint, 0), remedy)
    if PROCESSES not in first or RUN not in first:
        raise ValueError(f"{checkpoint} was written by an older version of this Trainer, which kept less of a run")
    if first[PROCESSES] == processes:
        return [first]
    return [read_json(progress_file(checkpoint, number), remedy) for number in range(first[PROCESSES])]


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

    def merged(self, states: Sequence[dict], process: int) -> dict:
        """What is logged is the mean over processes, so that each goes on with the mean."""
        return {**states[0], "loss_sum": sum(state["loss_sum"] for state in states) / len(states)}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.restored is not None:
            self.write(self.restored)
            self.restored = None
