"""One training run from a recipe: data, model, training, and a folder that plain transformers loads."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from modeling_siglip_ext.evaluation.metrics.zero_shot import ForcedChoiceTask, ZeroShotTask

from ..components.progress import ReadableProgress
from ..data.dataset import ImageTextCollator
from ..data.emoji.tasks import emoji_tasks
from ..data.tar_shards import TarShards
from ..trainer import SiglipExtTrainer
from .fields import Recipe
from .held_out import HeldOutMetrics
from .models import attach_image_tower, build_model, text_length
from .report import write_report
from .rows import load_rows, training_data


@dataclass
class Run:
    """A run that is ready to train."""

    recipe: Recipe
    trainer: SiglipExtTrainer
    processor: ProcessorMixin
    train_rows: Dataset | IterableDataset | TarShards
    eval_rows: Dataset | None
    tasks: list[ZeroShotTask | ForcedChoiceTask]


def prepare(recipe: Recipe) -> Run:
    """Load the data and build model and Trainer; everything that can be wrong with a recipe shows here.

    Raises:
        FileNotFoundError, ValueError: naming the field and the remedy.
    """
    set_seed(recipe.training.seed)
    data, args = recipe.data, recipe.training
    rows = load_rows(data, args.seed)
    if data.is_stream and args.max_steps < 1:
        raise ValueError("a stream has no length: set max_steps or max_examples")
    precomputed = data.image_embeddings is not None
    model, processor = build_model(recipe.model, rows.captions(data.caption_column), precomputed)
    train, held_out = training_data(recipe, rows, processor.image_processor)
    batch = args.per_device_train_batch_size * args.world_size
    if not data.is_stream and len(train) < batch:
        raise ValueError(
            f"the training set has {len(train)} images, fewer than one batch of {batch}: lower "
            f"per_device_train_batch_size"
        )
    max_length = text_length(model, processor)
    tasks = emoji_tasks(rows.held_out) if data.dataset == "emoji" else []
    metrics = None if held_out is None else HeldOutMetrics(model, processor, tasks)
    trainer = SiglipExtTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=ImageTextCollator(processor, max_length, uint8=args.mini_batch_size is not None),
        processing_class=processor,
        compute_metrics=metrics,
    )
    if not recipe.training.disable_tqdm:
        ReadableProgress.replace_in(trainer)
    return Run(recipe, trainer, processor, rows.train, rows.held_out, tasks)


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
        output = trainer.predict(trainer.eval_dataset)
        figures = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
        embeddings = output.predictions
    if run.recipe.data.image_embeddings is not None:
        attach_image_tower(trainer.model, run.recipe.model.vision_name_or_path)
    trainer.save_model(_internal_call=True)  # the push to the Hub comes last, with the card
    if trainer.is_world_process_zero():
        write_report(run, figures, embeddings)
        # A pickle, which resuming does not need (checkpoints keep theirs) and which must not be published.
        (Path(trainer.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return figures
