"""From a recipe to a run that is ready to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import IterableDataset
from transformers import set_seed

from ..components.card import output_folder
from ..components.progress import ReadableProgress
from ..data.collator import ImageTextCollator
from ..data.facts import Task
from ..trainer import SiglipExtTrainer
from .held_out import HeldOutMetrics
from .models import build_model, refuse_naflex, text_length
from .recipe import Recipe
from .rows import Rows, load_rows, training_data


@dataclass(frozen=True)
class Run:
    """A run that is ready to train.

    Args:
        recipe: what was asked for.
        trainer: with model, processor and datasets.
        rows: what it trains on and is judged on.
        tasks: zero-shot tasks over the held-out rows.
    """

    recipe: Recipe
    trainer: SiglipExtTrainer
    rows: Rows
    tasks: Sequence[Task]

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return output_folder(self.recipe.training)


def prepare(recipe: Recipe) -> Run:
    """Load the data and build model and Trainer; everything that can be wrong with a recipe shows here.

    Raises:
        FileNotFoundError, ValueError: naming the field and the remedy.
    """
    set_seed(recipe.training.seed)
    data, args = recipe.data, recipe.training
    refuse_naflex(recipe.model, data.image_embeddings is not None)
    rows = load_rows(data, args.seed)
    if data.is_stream and args.max_steps < 1:
        raise ValueError("a stream has no length: set max_steps or max_examples")
    precomputed = data.image_embeddings is not None
    model, processor = build_model(recipe.model, rows.captions(data.caption_column), precomputed)
    train, held_out = training_data(recipe, rows, processor.image_processor)
    if not isinstance(train, IterableDataset):
        args.check_samples(len(train))
    max_length = text_length(model, processor)
    tasks = () if rows.held_out is None else rows.about.tasks(rows.held_out)
    trainer = SiglipExtTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=ImageTextCollator(
            processor,
            max_length,
            uint8=args.mini_batch_size is not None,
            equal_captions_match=data.equal_captions_match,
        ),
        processing_class=processor,
        compute_metrics=None if held_out is None else HeldOutMetrics(model, processor, tasks),
    )
    if not args.disable_tqdm:
        ReadableProgress.replace_in(trainer)
    return Run(recipe, trainer, rows, tasks)
