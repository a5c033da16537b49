"""The datasets that a recipe names: rows, and what the Trainer reads of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets, load_dataset
from transformers import BaseImageProcessor

from ..data.dataset import CaptionedRows, ImageTextDataset
from ..data.emoji.about import ABOUT as EMOJI
from ..data.emoji.loader import load_emoji
from ..data.facts import DatasetFacts
from ..data.folder import check_columns, load_image_folder
from ..data.image_embeddings import EmbeddingTextDataset, load_embeddings
from ..data.streaming import ImageTextStream
from ..data.tar_shards import TarShards
from .fields import BUNDLED, DataArguments
from .recipe import Recipe


# A row of the whole dataset knows its place, so that embeddings are found after the split.
PLACE = "__place__"


@dataclass(frozen=True)
class Rows:
    """What a recipe trains on and is judged on, before any processing, and what is known of it."""

    train: Dataset | IterableDataset | TarShards
    held_out: Dataset | None
    about: DatasetFacts

    def captions(self, columns: list[str]) -> list[str] | None:
        """Every training caption; None of a stream."""
        if not isinstance(self.train, Dataset):
            return None
        return [text for column in columns for text in _flat(self.train[column])]


def load_rows(data: DataArguments, seed: int) -> Rows:
    """
    Raises:
        FileNotFoundError: no such folder, or a folder without images.
        ValueError: a split or column that is not there.
    """
    if data.dataset.endswith(".tar"):
        if data.eval_split is not None:
            raise ValueError("eval_split: shards have no splits; unset it")
        return Rows(TarShards(data.dataset, seed), None, facts_of_dataset(data.dataset))
    rows, held_out = _read(data)
    about = facts_of_dataset(data.dataset)
    if isinstance(rows, IterableDataset) or data.is_stream:
        return Rows(rows if isinstance(rows, IterableDataset) else rows.to_iterable_dataset(), held_out, about)
    if data.image_embeddings is not None:
        rows = rows.add_column(PLACE, range(len(rows)))
        if held_out is not None:
            held_out = held_out.add_column(PLACE, range(len(rows), len(rows) + len(held_out)))
    if held_out is None and data.eval_fraction > 0:
        parts: DatasetDict = rows.train_test_split(data.eval_fraction, seed=seed)
        rows, held_out = parts["train"], parts["test"]
    return Rows(rows, held_out, about)


def facts_of_dataset(name: str) -> DatasetFacts:
    """What is known of the dataset that a recipe names: a path of this machine says nothing elsewhere."""
    if name == BUNDLED:
        return EMOJI
    if name.endswith(".tar") or Path(name).exists():  # of shards, which may be a pattern, too
        last = Path(name).resolve().name
        return DatasetFacts(last, re.sub(r"[^\w.-]+", "-", last))
    return DatasetFacts(name, name)


def every_row(data: DataArguments) -> Dataset:
    """All rows in one order, training before evaluation: those that `siglip-ext-train precompute` embeds."""
    if data.is_stream:
        raise ValueError("embeddings are of rows with an index: a stream or shards have none")
    rows, held_out = _read(data)
    assert isinstance(rows, Dataset)
    columns = [data.image_column]
    if held_out is None:
        return rows.select_columns(columns)
    return concatenate_datasets([rows.select_columns(columns), held_out.select_columns(columns)])


def _read(data: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | None]:
    held_out = None
    if data.dataset == BUNDLED:
        rows, held_out = (cast(Dataset, load_emoji(split, languages="all")) for split in ("train", "test"))
    elif Path(data.dataset).is_dir():
        rows = load_image_folder(data.dataset)
    else:
        rows, held_out = _from_hub(data)
    columns = rows.column_names or list(next(iter(rows)))
    check_columns(columns, "image_column", [data.image_column])
    check_columns(columns, "caption_column", data.caption_column)
    check_columns(columns, "pair_column", [] if data.pair_column is None else [data.pair_column])
    return rows, held_out


def _from_hub(data: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | None]:
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
    recipe: Recipe, rows: Rows, image_processor: BaseImageProcessor
) -> tuple[CaptionedRows | ImageTextStream, CaptionedRows | None]:
    """The training and the evaluation dataset.

    Raises:
        FileNotFoundError, ValueError: settings that do not fit the rows, too many bad examples, embeddings of
            something else.
    """
    data, seed, limit = recipe.data, recipe.training.seed, recipe.training.max_bad_fraction
    if data.image_embeddings is not None:
        return _embedded(recipe, rows)

    def with_images(part: Dataset, **settings: Any) -> ImageTextDataset:
        return ImageTextDataset(
            part,
            data.image_column,
            image_processor=image_processor,
            cache_gib=data.cache_gib,
            seed=seed,
            pair_column=data.pair_column,
            **settings,
        )

    held_out = None
    if rows.held_out is not None:
        held_out = with_images(rows.held_out, caption_column=data.caption_column[:1], max_bad_fraction=0.0)
    if not isinstance(rows.train, Dataset):
        if data.shuffle_captions or data.group_column is not None:
            raise ValueError("shuffle_captions and group_column need a dataset with an index, not a stream")
        stream = ImageTextStream(
            rows.train,
            data.image_column,
            data.caption_column,
            image_processor=image_processor,
            shuffle_buffer=data.shuffle_buffer,
            seed=seed,
            pair_column=data.pair_column,
        )
        return stream, held_out
    train = with_images(
        rows.train,
        caption_column=data.caption_column,
        shuffle_captions=data.shuffle_captions,
        group_column=data.group_column,
        max_bad_fraction=limit,
    )
    return train, held_out


def _embedded(recipe: Recipe, rows: Rows) -> tuple[EmbeddingTextDataset, EmbeddingTextDataset | None]:
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

    def part(rows: Dataset, columns: list[str], limit: float) -> EmbeddingTextDataset:
        return EmbeddingTextDataset(
            rows,
            embeddings,
            valid,
            rows[PLACE],
            caption_column=columns,
            seed=seed,
            pair_column=data.pair_column,
            max_bad_fraction=limit,
        )

    held_out = None if rows.held_out is None else part(rows.held_out, data.caption_column[:1], 0.0)
    return part(rows.train, data.caption_column, recipe.training.max_bad_fraction), held_out


def _flat(values: Iterable[str | list[str] | None]) -> list[str]:
    texts: list[str | None] = []
    for value in values:
        texts += value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str)]
