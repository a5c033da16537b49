"""One training run from a recipe: data, model, training, and a folder that plain transformers loads."""

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoProcessor, ProcessorMixin, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation.zero_shot import ForcedChoiceTask, ZeroShotTask

from .data import ImageTextCollator, ImageTextDataset, check_columns, load_image_folder
from .emoji.loader import load_emoji
from .emoji.tasks import emoji_tasks
from .metrics import HeldOutMetrics
from .progress import ReadableProgress
from .recipe import DataArguments, ModelArguments, Recipe
from .report import write_report
from .trainer import SiglipExtTrainer


logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that is ready to train."""

    recipe: Recipe
    trainer: SiglipExtTrainer
    processor: ProcessorMixin
    train_rows: Dataset
    eval_rows: Dataset | None
    tasks: list[ZeroShotTask | ForcedChoiceTask]


def load_rows(data: DataArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows of the dataset that the recipe names.

    Raises:
        FileNotFoundError: no such folder, or a folder without images.
        ValueError: a split or column that is not there.
    """
    held_out = None
    if data.dataset == "emoji":
        rows, held_out = load_emoji("train", languages="all"), load_emoji("test", languages="all")
    elif Path(data.dataset).is_dir():
        rows = load_image_folder(data.dataset)
    else:
        splits = load_dataset(data.dataset, data.dataset_config)
        for setting, split in (("train_split", data.train_split), ("eval_split", data.eval_split)):
            if split is not None and split not in splits:
                raise ValueError(f"{setting}={split!r}: {data.dataset} has the splits {', '.join(splits)}")
        rows = splits[data.train_split]
        held_out = splits[data.eval_split] if data.eval_split is not None else None
    check_columns(rows.column_names, "image_column", [data.image_column])
    check_columns(rows.column_names, "caption_column", data.caption_column)
    if held_out is None and data.eval_fraction > 0:
        parts: DatasetDict = rows.train_test_split(data.eval_fraction, seed=seed)
        rows, held_out = parts["train"], parts["test"]
    return rows, held_out


def build_model(model: ModelArguments, captions: list[str]) -> tuple[SiglipExtModel, ProcessorMixin]:
    """A model and its processor: a checkpoint, or from scratch with a tokenizer trained on the captions."""
    attention = {} if model.attn_implementation is None else {"attn_implementation": model.attn_implementation}
    if model.model_name_or_path is not None:
        processor = AutoProcessor.from_pretrained(model.model_name_or_path)
        return SiglipExtModel.from_pretrained(model.model_name_or_path, **attention), processor
    head = {"logit_scale_init": model.logit_scale_init, "logit_bias_init": model.logit_bias_init}
    config = SiglipExtConfig(
        vision_config=model.vision_config,
        text_config={**(model.text_config or {}), "vocab_size": model.vocab_size},
        loss_type=model.loss_type,
        **{name: value for name, value in head.items() if value is not None},
    )
    text = config.text_config
    tokenizer = train_tokenizer(captions, vocab_size=model.vocab_size, max_length=text.max_position_embeddings)
    # A small corpus can give fewer tokens than asked for.
    text.vocab_size = len(tokenizer)
    text.pad_token_id, text.eos_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    side = config.vision_config.image_size
    image_processor = SiglipExtImageProcessor(size={"height": side, "width": side})
    return SiglipExtModel._from_config(config, **attention), SiglipExtProcessor(image_processor, tokenizer)


def prepare(recipe: Recipe) -> Run:
    """Load the data and build model and Trainer; everything that can be wrong with a recipe shows here.

    Raises:
        FileNotFoundError, ValueError: naming the field and the remedy.
    """
    set_seed(recipe.training.seed)
    data = recipe.data
    train_rows, eval_rows = load_rows(data, recipe.training.seed)
    every_caption = [text for column in data.caption_column for text in _flat(train_rows[column])]
    model, processor = build_model(recipe.model, every_caption)

    def as_dataset(rows: Dataset, **kwargs) -> ImageTextDataset:
        return ImageTextDataset(
            rows,
            data.image_column,
            image_processor=processor.image_processor,
            cache_gib=data.cache_gib,
            seed=recipe.training.seed,
            **kwargs,
        )

    train = as_dataset(
        train_rows,
        caption_column=data.caption_column,
        shuffle_captions=data.shuffle_captions,
        group_column=data.group_column,
    )
    batch = recipe.training.per_device_train_batch_size * recipe.training.world_size
    if len(train) < batch:
        raise ValueError(
            f"the training set has {len(train)} images, fewer than one batch of {batch}: lower "
            f"per_device_train_batch_size"
        )
    evaluation = None if eval_rows is None else as_dataset(eval_rows, caption_column=data.caption_column[:1])
    max_length = model.config.text_config.max_position_embeddings
    tasks = emoji_tasks(eval_rows) if data.dataset == "emoji" else []
    metrics = None if eval_rows is None else HeldOutMetrics(model, processor, max_length, tasks)
    trainer = SiglipExtTrainer(
        model=model,
        args=recipe.training,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=ImageTextCollator(processor, max_length),
        processing_class=processor,
        compute_metrics=metrics,
    )
    if not recipe.training.disable_tqdm:
        ReadableProgress.replace_in(trainer)
    return Run(recipe, trainer, processor, train_rows, eval_rows, tasks)


def _flat(values: list) -> list[str]:
    texts = []
    for value in values:
        texts += value if isinstance(value, list) else [value]
    return [text for text in texts if text is not None]


def train(run: Run) -> dict[str, float]:
    """Train, evaluate, and write model, processor, trainer state, pictures and card to `output_dir`.

    Returns:
        The held-out figures, without prefix.
    """
    trainer = run.trainer
    resume = run.recipe.training.resume_from_checkpoint
    # "true" stands for the newest checkpoint in output_dir.
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    trainer.save_model(_internal_call=True)  # the push to the Hub comes last, with the card
    trainer.save_state()
    figures, embeddings = {}, None
    if trainer.eval_dataset is not None:
        output = trainer.predict(trainer.eval_dataset)
        figures = {name.removeprefix("test_"): value for name, value in output.metrics.items()}
        embeddings = output.predictions
    if trainer.is_world_process_zero():
        write_report(run, figures, embeddings)
        # A pickle, which resuming does not need (checkpoints keep theirs) and which must not be published.
        (Path(trainer.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return figures
