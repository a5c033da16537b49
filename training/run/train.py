"""A run from its first step to a folder that plain transformers loads."""

from typing import cast

import numpy as np
from torch.utils.data import Dataset
from transformers.trainer import TRAINING_ARGS_NAME

from modeling_siglip_ext import SiglipExtModel

from .models import attach_image_tower
from .prepare import Run
from .report import write_run_report


def train(run: Run) -> dict[str, float]:
    """Train, evaluate, and write model, processor, trainer state, pictures and card to `output_dir`.

    Returns:
        The held-out figures, without prefix.
    """
    trainer = run.trainer
    resume = run.recipe.training.resume_from_checkpoint
    # "true" stands for the newest checkpoint in output_dir.
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    trainer.save_state()
    figures, embeddings = {}, None
    if trainer.eval_dataset is not None:
        output = trainer.predict(cast(Dataset, trainer.eval_dataset))
        figures = {name.removeprefix("test_"): value for name, value in (output.metrics or {}).items()}
        embeddings = cast(tuple[np.ndarray, np.ndarray], output.predictions)
    tower = run.recipe.model.vision_name_or_path
    if run.recipe.data.image_embeddings is not None and tower is not None:
        attach_image_tower(cast(SiglipExtModel, trainer.model), tower)
    trainer.save_model(_internal_call=True)  # the push to the Hub comes last, with the card
    if trainer.is_world_process_zero():
        write_run_report(run, figures, embeddings)
        # A pickle, which resuming does not need (checkpoints keep theirs) and which must not be published.
        (run.folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return figures
