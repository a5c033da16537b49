"""Checkpoints at given shares of training, kept for the stages that begin there.

SigLIP 2's NaFlex and its higher resolutions begin at 90 and 95 % of the training of another model (arXiv 2502.14786,
section 2.4), when newer checkpoints would long have taken the place of those.
"""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_siglip_ext.files import new_folder


KEPT = "kept"


class Milestones(TrainerCallback):
    """Asks for a checkpoint at the first step that has come as far as each share.

    Args:
        shares: of training, above 0 and below 1.
    """

    def __init__(self, shares: Sequence[float]):
        self.shares = shares

    def steps(self, total: int) -> set[int]:
        return {math.ceil(share * total) for share in self.shares}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.global_step in self.steps(state.max_steps):
            control.should_save = True

    def keep(self, checkpoint: Path, step: int, total: int) -> None:
        """Put a second name to the files of a checkpoint, if it is one of these, in `kept/` beside it."""
        kept = checkpoint.parent / KEPT / checkpoint.name
        if step in self.steps(total) and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            with new_folder(kept) as draft:
                shutil.copytree(checkpoint, draft, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a disk without links
        shutil.copy2(source, target)
    return target
