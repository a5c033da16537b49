"""The folder of a run: whether it is free for a fresh one, and which checkpoint in it a resumed one continues.

Trainer writes into whatever folder it is given. A fresh run among the checkpoints of another one is later resumed from
the other's, if that had more steps, and its pictures are published with the new model. A finished model without
checkpoints is replaced, as a script that is run again expects.
"""

import re
import shutil
from pathlib import Path

from modeling_siglip_ext.hub.facts import CAPTIONS, HELD_OUT


STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
ADAPTER = "adapter_model.safetensors"
# What a run shows of its model.
PICTURES = ("loss_curve.png", "retrieval.png")


def step_of(checkpoint: Path) -> int:
    """The step that a folder `checkpoint-N` is of; -1 for another name."""
    found = CHECKPOINT.fullmatch(checkpoint.name)
    return -1 if found is None else int(found.group(1))


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a run, in the order of their steps."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0 and (path / STATE).is_file()]
    return sorted(found, key=step_of)


def check_unused(folder: Path) -> None:
    """Check that a fresh run may write into a folder: a model that lies there is replaced, a run is not joined.

    Raises:
        FileExistsError: it holds checkpoints of an earlier run, or an adapter, which would be put on top of a model.
    """
    there = checkpoints(folder)
    if there:
        raise FileExistsError(
            f"output_dir={str(folder)!r} holds {there[-1].name} of an earlier run: continue that with "
            "--resume_from_checkpoint true, or choose another output_dir, or remove the folder"
        )
    if (folder / ADAPTER).exists():
        raise FileExistsError(
            f"output_dir={str(folder)!r} holds {ADAPTER} of an earlier run, which would be mixed with this one's "
            "model: choose another output_dir, or remove the folder"
        )


def clear_pictures(folder: Path) -> None:
    """Remove what an earlier run left of pictures and held-out samples: with another model they would be published."""
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    if (folder / HELD_OUT / CAPTIONS).is_file():  # another folder of this name is the user's
        shutil.rmtree(folder / HELD_OUT)


def checkpoint_to_resume(wanted: str | bool | None, folder: Path) -> Path | None:
    """The checkpoint that a run is to continue, None for a fresh one.

    Args:
        wanted: a checkpoint's folder; True or "true" for the newest one in `folder`; None, False or "false" for none.
        folder: of the run.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it cannot be continued.
        FileExistsError, ValueError: it lies elsewhere, and `folder` holds another run.
    """
    word = str(wanted).strip()
    if wanted is None or word.lower() in ("", "false", "none", "no"):
        return None
    there = checkpoints(folder)
    if word.lower() in ("true", "yes"):
        if not there:
            raise FileNotFoundError(
                f"resume_from_checkpoint: there is no checkpoint in output_dir={str(folder)!r}, as none was finished "
                "or the folder is another one: unset it to begin from the start"
            )
        return _continued(there[-1])
    checkpoint = Path(word)
    if not (checkpoint / STATE).is_file() or (step_of(checkpoint) < 0 and checkpoints(checkpoint)):
        inside = checkpoints(checkpoint) or there
        hint = f"; did you mean {str(inside[-1])!r}?" if inside else ""
        raise FileNotFoundError(f"resume_from_checkpoint={word!r} is not the folder of a checkpoint{hint}")
    if checkpoint.resolve().parent != folder.resolve():
        if there:
            raise ValueError(
                f"resume_from_checkpoint={word!r} is of another run than {there[-1].name} in "
                f"output_dir={str(folder)!r}: set output_dir to {str(checkpoint.parent)!r}, or to a new folder"
            )
        check_unused(folder)
    return _continued(checkpoint)


def _continued(checkpoint: Path) -> Path:
    """
    Raises:
        FileNotFoundError: without the optimiser's state a run would begin anew in silence.
    """
    if not any(checkpoint.glob("optimizer*")) and not any(checkpoint.glob("global_step*")):  # the latter: DeepSpeed
        raise FileNotFoundError(
            f"{checkpoint} has no state of the optimiser (save_only_model?), so its run cannot be continued: start a "
            f"new one from its weights, with model_name_or_path and another output_dir"
        )
    return checkpoint
