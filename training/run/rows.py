"""The datasets that a recipe names: rows, and what the Trainer reads of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets, load_dataset
from transformers import BaseImageProcessor
from transformers.utils import logging

from modeling_siglip_ext.evaluation.data.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, member, usual
from modeling_siglip_ext.evaluation.data.layouts import NO_IMAGES, is_local, load, named_errors, splits_in
from modeling_siglip_ext.evaluation.data.sources import is_url, kind_of, names_many, shards_of, short_name
from modeling_siglip_ext.image_budget import is_naflex

from ..components.devices import share_of_the_host
from ..data.dataset import CaptionedRows, ImageTextDataset
from ..data.emoji.about import ABOUT as ABOUT_EMOJI
from ..data.emoji.loader import load_emoji
from ..data.facts import DatasetFacts
from ..data.folder import check_captions, check_columns
from ..data.image_embeddings import EmbeddingTextDataset, budget_of, load_embeddings
from ..data.pixel_cache import fits_cache
from ..data.reference_embeddings import ReferenceEmbeddings
from ..data.region_table import with_regions
from ..data.samples import GRACE, SkipCounter, captions_if_any
from ..data.scenes.about import ABOUT as ABOUT_SCENES
from ..data.scenes.scenes import HELD_OUT_SCENES
from ..data.scenes.table import scenes_of
from ..data.streaming import ImageTextStream
from ..data.tar_shards import TarShards
from .fields import EMOJI, SCENES, DataArguments
from .recipe import Recipe


logger = logging.get_logger(__name__)
# A row of the whole dataset knows its place, so that embeddings are found after the split, and bad rows are named.
PLACE = "__place__"
ABOUT = {EMOJI: ABOUT_EMOJI, SCENES: ABOUT_SCENES}


@dataclass(frozen=True)
class Rows:
    """What a recipe trains on and is judged on, before any processing, and what is known of it."""

    train: Dataset | IterableDataset | TarShards
    held_out: Dataset | None
    about: DatasetFacts

    def count(self) -> int:
        """Rows of both parts, those of a stream not counted."""
        return sum(len(part) for part in (self.train, self.held_out) if isinstance(part, Dataset))

    def judged_on(self, kept: CaptionedRows) -> "Rows":
        """The same with the held-out rows that are in the evaluation dataset.

        Raises:
            ValueError: none is left.
        """
        assert self.held_out is not None
        if not len(kept):
            raise ValueError(
                f"none of the {len(self.held_out)} held-out rows can be used{kept.first_left_out()}. Repair them, or "
                "set eval_fraction 0 and eval_strategy no"
            )
        return replace(self, held_out=self.held_out.select(kept.rows))

    def captions(self, columns: list[str]) -> list[str] | None:
        """Every training caption; None of a stream."""
        if not isinstance(self.train, Dataset):
            return None
        return [text for column in columns for values in self.train[column] for text in captions_if_any(values)]


def load_rows(data: DataArguments, seed: int) -> Rows:
    """
    Raises:
        FileNotFoundError: a file or folder that is not there, or a folder without images.
        ValueError: a split or column that is not there, a file that cannot be read.
    """
    shards = shards_of(data.dataset, data.train_split)
    if shards:
        return Rows(_shards(data, shards, seed), None, facts_of_dataset(data.dataset))
    rows, held_out = _read(data)
    about = facts_of_dataset(data.dataset)
    if isinstance(rows, IterableDataset) or data.is_stream:
        return Rows(rows if isinstance(rows, IterableDataset) else rows.to_iterable_dataset(), held_out, about)
    if data.image_embeddings is not None or held_out is None:
        rows = rows.add_column(PLACE, range(len(rows)))
    if data.image_embeddings is not None and held_out is not None:
        held_out = held_out.add_column(PLACE, range(len(rows), len(rows) + len(held_out)))
    if held_out is None and data.eval_fraction > 0:
        if math.ceil(len(rows) * data.eval_fraction) >= len(rows):
            raise ValueError(
                f"eval_fraction={data.eval_fraction} of {len(rows)} rows leaves none to train on: add rows, or lower "
                "it (0 holds nothing out)"
            )
        parts: DatasetDict = rows.train_test_split(data.eval_fraction, seed=seed)
        rows, held_out = parts["train"], parts["test"]
    return Rows(rows, held_out, about)


def _shards(data: DataArguments, shards: list[str], seed: int) -> TarShards:
    for setting in ("separator", "dataset_config"):
        if getattr(data, setting) is not None:
            raise ValueError(f"{setting} means nothing for tar shards; unset it")
    return TarShards(shards, seed)


def facts_of_dataset(name: str) -> DatasetFacts:
    """What is known of the dataset that a recipe names: a path of this machine says nothing elsewhere, and a URL may
    hold a signature.
    """
    if name in ABOUT:
        return ABOUT[name]
    path = Path(name).expanduser()
    if path.exists() or is_url(name) or names_many(name) or kind_of(name) is not None:
        last = path.resolve().name if path.exists() else short_name(name)
        return DatasetFacts(last, re.sub(r"[^\w.-]+", "-", last))
    return DatasetFacts(name, name)


def every_row(data: DataArguments, beside: Sequence[str] = ()) -> Dataset:
    """All rows in one order, training before evaluation: those that `siglip-ext-train precompute` embeds.

    Args:
        beside: columns beside that of the images.
    """
    if data.is_stream:
        raise ValueError("embeddings and regions are of rows with an index: a stream or shards have none")
    rows, held_out = _read(data)
    assert isinstance(rows, Dataset)
    columns = [data.image_column, *beside]
    if held_out is None:
        return rows.select_columns(columns)
    return concatenate_datasets([rows.select_columns(columns), held_out.select_columns(columns)])


def _read(data: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | None]:
    if data.dataset in ABOUT and Path(data.dataset).exists():
        logger.warning("dataset: %s is the bundled one; what is here is ./%s", data.dataset, data.dataset)
    if data.dataset == EMOJI:
        train, test = (cast(Dataset, load_emoji(split, languages="all")) for split in ("train", "test"))
        return _with_columns(train, data), _with_columns(test, data)
    if data.dataset == SCENES:
        split, settings = data.eval_split or HELD_OUT_SCENES[0], data.scene_settings()
        if split not in HELD_OUT_SCENES:
            raise ValueError(f"eval_split={split!r}: held-out splits of scenes are {', '.join(HELD_OUT_SCENES)}")
        held_out = scenes_of(split, settings)
        return _with_columns(scenes_of("train", settings), data), _with_columns(held_out, data)
    rows, held_out = _from_files(data) if is_local(data.dataset) else _from_hub(data)
    if data.regions_file is not None:
        rows, held_out = _with_regions(rows, held_out, data)
    return _with_columns(rows, data), None if held_out is None else _with_columns(held_out, data)


def _with_regions(rows: Any, held_out: Dataset | None, data: DataArguments) -> tuple[Dataset, Dataset | None]:
    table = load(str(data.regions_file), image_column=NO_IMAGES)
    parts = with_regions(
        [rows] if held_out is None else [rows, held_out], table, data.regions_key, str(data.regions_file)
    )
    return parts[0], None if held_out is None else parts[1]


def _with_columns(rows: Any, data: DataArguments) -> Any:
    """Rows whose columns have the names of the settings: those are the usual ones unless they were set.

    Raises:
        ValueError: a column that is not there.
    """
    present = rows.column_names or list(next(iter(rows)))
    for setting, names in (("image_column", IMAGE_COLUMNS), ("caption_column", CAPTION_COLUMNS)):
        wanted = [data.image_column] if setting == "image_column" else data.caption_column
        found = usual(present, names)
        if wanted == [names[0]] and names[0] not in present and found is not None:
            logger.warning("%s: %r is taken, as there is no %r", setting, found, names[0])
            rows = rows.rename_column(found, names[0])
        else:
            check_columns(present, setting, wanted)
    for setting in ("pair_column", "region_column"):
        column = getattr(data, setting)
        check_columns(present, setting, [] if column is None else [column])
    return rows


def _from_files(data: DataArguments) -> tuple[Dataset, Dataset | None]:
    splits = splits_in(data.dataset)
    if not splits and (data.eval_split is not None or data.train_split != "train"):
        raise ValueError(f"{data.dataset} has no splits: unset train_split and eval_split")

    def part(split: str | None) -> Dataset:
        return load(
            data.dataset,
            config=data.dataset_config,
            split=split,
            separator=data.separator,
            image_column=data.image_column,
        )

    rows = part(data.train_split if splits else None)
    if Path(data.dataset).expanduser().is_dir() and set(rows.column_names) <= {"image", "label", "caption"}:
        check_captions(rows, data.dataset)
    return rows, None if data.eval_split is None else part(data.eval_split)


def _from_hub(data: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | None]:
    if data.separator is not None:
        raise ValueError(f"separator is of CSV files; {data.dataset} is a name on the Hub")
    with named_errors(data.dataset):
        splits = load_dataset(data.dataset, data.dataset_config, streaming=data.streaming)
    assert isinstance(splits, (DatasetDict, IterableDatasetDict))  # as no split was asked for
    for setting, split in (("train_split", data.train_split), ("eval_split", data.eval_split)):
        if split is not None and split not in splits:
            raise ValueError(f"{setting}={split!r}: {data.dataset} has the splits {', '.join(map(str, splits))}")
    held_out = None if data.eval_split is None else splits[data.eval_split]
    if isinstance(held_out, IterableDataset):  # an evaluation set is read whole
        held_out = cast(Dataset, load_dataset(data.dataset, data.dataset_config, split=data.eval_split))
    return splits[data.train_split], held_out


def training_data(
    recipe: Recipe, rows: Rows, image_processor: BaseImageProcessor, reference: ReferenceEmbeddings | None = None
) -> tuple[CaptionedRows | ImageTextStream, CaptionedRows | None]:
    """The training and the evaluation dataset; the latter has only rows that can be read.

    Bad rows are counted over both, so that it does not depend on the split, and its seed, how many there may be.

    Args:
        reference: what a reference makes of the rows, which training examples then bring along.

    Raises:
        FileNotFoundError, ValueError: settings that do not fit the rows, too many bad examples, embeddings of
            something else.
    """
    data, args = recipe.data, recipe.training
    skips = SkipCounter(args.max_bad_fraction, rows.count())
    if data.image_embeddings is not None:
        return _embedded(recipe, rows, skips, image_processor, reference)
    lengths = data.naflex_lengths
    if not isinstance(rows.train, Dataset) or not fits_cache(
        len(rows.train), image_processor, data.cache_gib, lengths
    ):
        skips.grace = max(skips.grace, GRACE)  # as of the images that are read, and counted, in training

    def with_images(part: Dataset, **settings: Any) -> ImageTextDataset:
        places = part[PLACE] if PLACE in part.column_names else None
        common: dict[str, Any] = {"image_processor": image_processor, "cache_gib": data.cache_gib, "seed": args.seed}
        return ImageTextDataset(
            part,
            data.image_column,
            upscale=data.upscale,
            skips=skips,
            numbers=places,
            pair_column=data.pair_column,
            region_column=data.region_column,
            **common,
            **settings,
        )

    def for_evaluation() -> ImageTextDataset | None:
        if rows.held_out is None:
            return None
        held_out = with_images(rows.held_out, caption_column=data.caption_column[:1], called="held-out example")
        held_out.leave_out_unreadable(*share_of_the_host(args.device))
        return held_out

    if not isinstance(rows.train, Dataset):
        if data.shuffle_captions or data.group_column is not None:
            raise ValueError("shuffle_captions and group_column need a dataset with an index, not a stream")
        image, captions = data.image_column, data.caption_column
        if isinstance(rows.train, TarShards):
            image, captions = member(image, "image"), [member(name, "caption") for name in captions]
        stream = ImageTextStream(
            rows.train,
            image,
            captions,
            image_processor=image_processor,
            naflex_lengths=lengths,
            upscale=data.upscale,
            shuffle_buffer=data.shuffle_buffer,
            seed=args.seed,
            pair_column=data.pair_column,
            region_column=data.region_column,
        )
        return stream, for_evaluation()
    train = with_images(
        rows.train,
        caption_column=data.caption_column,
        naflex_lengths=lengths,
        shuffle_captions=data.shuffle_captions,
        group_column=data.group_column,
        reference=reference,
    )
    return train, for_evaluation()


def _embedded(
    recipe: Recipe, rows: Rows, skips: SkipCounter, image_processor: Any, reference: ReferenceEmbeddings | None
) -> tuple[EmbeddingTextDataset, EmbeddingTextDataset | None]:
    data, model, seed = recipe.data, recipe.model, recipe.training.seed
    if data.image_embeddings is None or model.vision_name_or_path is None or not isinstance(rows.train, Dataset):
        raise ValueError(
            "image_embeddings needs vision_name_or_path, the image tower they were made by, and no stream"
        )
    if data.shuffle_captions or data.group_column is not None:
        raise ValueError("image_embeddings excludes shuffle_captions and group_column")
    embeddings, valid = load_embeddings(
        data.image_embeddings, model.vision_name_or_path, every_row(data), data.image_column, model.vision_pooling
    )
    if is_naflex(image_processor):  # it is saved with the model that is trained on images seen so
        image_processor.max_num_patches = budget_of(data.image_embeddings).longest(image_processor)

    def part(
        rows: Dataset, columns: list[str], called: str, reference: ReferenceEmbeddings | None = None
    ) -> EmbeddingTextDataset:
        places = rows[PLACE]
        return EmbeddingTextDataset(
            rows,
            embeddings,
            valid,
            places,
            caption_column=columns,
            seed=seed,
            pair_column=data.pair_column,
            reference=reference,
            skips=skips,
            called=called,
        )

    train = part(rows.train, data.caption_column, "example", reference)
    held_out = None if rows.held_out is None else part(rows.held_out, data.caption_column[:1], "held-out example")
    return train, held_out
