"""A run from its first step to a folder that plain transformers loads."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset
from transformers.trainer import TRAINING_ARGS_NAME

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.captioning import save_decoder
from modeling_siglip_ext.hub.calls import PublishError

from ..objectives.captioning import Captioning
from .models import attach_image_tower
from .objective_fields import CAPTIONING
from .prepare import Run
from .report import write_run_report


Modules = tuple[Any, Any]
DECODER = "decoder"


class UnfinishedRunError(RuntimeError):
    """The model is trained and on disk, and something after that failed."""


def train(run: Run) -> dict[str, float]:
    """Train, evaluate, and write model, processor, trainer state, pictures and card to `output_dir`.

    The model is on disk before anything else can fail.

    Returns:
        The held-out figures, without prefix.

    Raises:
        UnfinishedRunError: held-out figures, pictures, the card or the push failed, for a reason that is the user's to
            mend.
    """
    trainer = run.trainer
    trainer.train()
    stand_in = attach(run)
    save(run)
    try:
        with exchanged(run, stand_in):
            figures, embeddings = judge(run)
        if trainer.is_world_process_zero():
            write_run_report(run, figures, embeddings)
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
            remove_pickle(run)
    except (OSError, ValueError, PublishError) as error:
        raise UnfinishedRunError(f"{error} (the trained model is complete in {run.folder})") from error
    return figures


def attach(run: Run) -> Modules | None:
    """Put the image tower into a model that was trained from embeddings; what stood in for it.

    Raises:
        UnfinishedRunError: the tower cannot be loaded any more; what was trained is in a checkpoint.
    """
    tower, model = run.recipe.model.vision_name_or_path, cast(SiglipExtModel, run.trainer.model)
    if run.recipe.data.image_embeddings is None or tower is None:
        return None
    stand_in = model.vision_model, model.vision_adapter
    try:
        attach_image_tower(model, tower)
    except (OSError, ValueError) as error:
        checkpoint = run.trainer.save_checkpoint()
        raise UnfinishedRunError(
            f"{error} (the image tower cannot be loaded any more; what was trained is in {checkpoint}, to be resumed)"
        ) from error
    return stand_in


@contextmanager
def exchanged(run: Run, modules: Modules | None) -> Generator[None]:
    """With what stood in for the image tower, if anything did: the evaluation set has embeddings, too."""
    if modules is None:
        yield
        return
    model = cast(SiglipExtModel, run.trainer.model)
    whole = model.vision_model, model.vision_adapter
    model.vision_model, model.vision_adapter = modules
    try:
        yield
    finally:
        model.vision_model, model.vision_adapter = whole


def save(run: Run) -> None:
    """Write model, processor and trainer state."""
    run.trainer.save_model(_internal_call=True)  # the push to the Hub comes last, with the card
    run.trainer.save_state()
    remove_pickle(run)
    save_captioning_decoder(run)


def save_captioning_decoder(run: Run) -> None:
    """Write the decoder that trained along into a folder of its own, which is not published."""
    if CAPTIONING not in run.trainer.parts:
        return
    decoder = cast(Captioning, run.trainer.parts[CAPTIONING]).whole_decoder()
    if run.trainer.is_world_process_zero():
        folder = run.folder / DECODER
        shutil.rmtree(folder, ignore_errors=True)  # of this run, resumed after its end
        save_decoder(decoder, folder)


def remove_pickle(run: Run) -> None:
    """Remove Trainer's pickle, which resuming does not need (checkpoints keep theirs) and which is not published."""
    if run.trainer.is_world_process_zero():
        (run.folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def judge(run: Run) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray] | None]:
    """Figures over the held-out rows, without prefix, and their embeddings (N, D) of images and texts."""
    trainer = run.trainer
    if trainer.eval_dataset is None:
        return {}, None
    output = trainer.predict(cast(Dataset, trainer.eval_dataset))
    figures = {name.removeprefix("test_"): value for name, value in (output.metrics or {}).items()}
    return figures, cast(tuple[np.ndarray, np.ndarray], output.predictions)
