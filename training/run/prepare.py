"""From a recipe to a run that is ready to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from modeling_siglip_ext.evaluation.data.image_folder import metadata_files

from ..components.card import output_folder
from ..components.checked_run import check_metric
from ..components.image_inputs import check_images
from ..components.progress import ReadableProgress
from ..components.run_folder import check_unused, checkpoint_to_resume
from ..data.collator import ImageTextCollator
from ..data.dataset import CaptionedRows
from ..data.facts import Task
from ..data.lengths import check_lengths
from ..trainer import SiglipExtTrainer
from .curation import build_curation, curation_settings, recalled_reference
from .fields import BUNDLED
from .held_out import HeldOutMetrics, metric_names
from .models import build_model, text_length
from .objectives import build_beside, written_beside
from .recipe import Recipe
from .rows import Rows, load_rows, training_data
from .sources import check_sources


logger = logging.get_logger(__name__)


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

    What is cheap to find out comes first: settings, folders, the data, and only then the model.

    Raises:
        FileNotFoundError, ValueError: naming the field and the remedy.
    """
    data, args = recipe.data, recipe.training
    args.check_for_training()
    if data.is_stream and args.max_steps < 1:
        raise ValueError("a stream has no length: set max_steps or max_examples")
    check_folder(recipe)
    check_sources(recipe.model)
    curation = curation_settings(recipe.objectives, data)
    read = args.train_batch_size if curation is None else curation.super_batch(args.train_batch_size)
    check_lengths(data.naflex_lengths, args.mini_batch_tokens)
    set_seed(args.seed)
    rows = load_rows(data, args.seed)
    check_rows(recipe, rows, read)
    reference = recalled_reference(recipe.objectives, data)
    precomputed = data.image_embeddings is not None
    texts, regions = rows.captions(data.caption_column), data.region_column is not None
    if texts is not None:
        texts = [*texts, *written_beside(recipe.objectives, regions)]
    model, processor = build_model(recipe.model, texts, precomputed)
    if not precomputed:
        check_images(model, [processor], args, data.naflex_lengths)
    train, held_out = training_data(recipe, rows, processor.image_processor, reference)
    if not isinstance(train, IterableDataset):
        args.check_samples(len(train), read)
        tell_left_out("training", train)
    if held_out is not None:
        tell_left_out("held-out", held_out)
        rows = rows.judged_on(held_out)
    max_length = text_length(model, processor)
    tasks = () if rows.held_out is None else rows.about.tasks(rows.held_out)
    collator = ImageTextCollator(
        processor,
        max_length,
        uint8=args.in_chunks,
        equal_captions_match=data.equal_captions_match,
    )
    beside = build_beside(recipe.objectives, model, processor, collator, regions)
    trainer = SiglipExtTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=beside.collator,
        objectives=beside.objectives,
        curation=build_curation(
            recipe.objectives, curation, model, processor, recipe.model.attn_implementation, reference
        ),
        processing_class=processor,
        compute_metrics=None if held_out is None else HeldOutMetrics(model, processor, tasks),
    )
    if not args.disable_tqdm:
        ReadableProgress.replace_in(trainer)
    return Run(recipe, trainer, rows, tasks)


def check_folder(recipe: Recipe) -> None:
    """
    Raises:
        OSError: the output folder is another run's, or there is no checkpoint to resume.
        ValueError: the checkpoint is another run's, or the output folder lies in that of the data.
    """
    folder = output_folder(recipe.training)
    if checkpoint_to_resume(recipe.training.resume_from_checkpoint, folder) is None:
        check_unused(folder)
        if recipe.data.dataset not in BUNDLED:
            check_apart(folder, Path(recipe.data.dataset))


def check_apart(folder: Path, dataset: Path) -> None:
    """Check that a run does not write among its data, where its pictures would be examples of the next one.

    Where a table names the images, or `save_to_disk` wrote the folder, nothing else in it is read.

    Raises:
        ValueError: it would.
    """
    data = dataset.expanduser()
    if not data.is_dir() or not folder.resolve().is_relative_to(data.resolve()):
        return
    saved = any((data / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if not saved and not metadata_files(data):
        raise ValueError(
            f"output_dir={str(folder)!r} lies in the dataset {str(data)!r}, where the pictures of this run would be "
            "taken for data: choose a folder beside it"
        )


def check_rows(recipe: Recipe, rows: Rows, read: int) -> None:
    """Check the settings that depend on the data, as far as that needs no model.

    Args:
        read: rows that a process reads for a batch.

    Raises:
        ValueError: fewer rows than a batch, an evaluation without held-out rows, a metric that will not be there.
    """
    args = recipe.training
    if isinstance(rows.train, Dataset):
        args.check_samples(len(rows.train), read)
    if rows.held_out is None and (args.eval_strategy != "no" or args.eval_on_start):
        strategy = IntervalStrategy(args.eval_strategy).value
        setting = "eval_on_start" if strategy == "no" else f"eval_strategy={strategy}"
        raise ValueError(
            f"{setting} needs held-out rows, and there are none: a stream has none by itself (set "
            "eval_split), shards have none at all, other data need eval_fraction above 0. Or set eval_strategy no"
        )
    if rows.held_out is not None:
        check_metric(args, metric_names(rows.about.tasks(rows.held_out)))


def tell_left_out(kind: str, dataset: CaptionedRows) -> None:
    """Say how many rows cannot be used; each of the first was named when it was met."""
    bad = len(dataset.left_out)
    if bad:
        logger.warning("%d of %d %s examples are left out, as they cannot be used", bad, bad + len(dataset), kind)
