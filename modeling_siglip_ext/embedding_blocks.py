"""Stored embeddings in blocks: more of them than memory holds, read in order as often as wanted."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open

from .embedding_store import COLUMN_TYPES, MISSING, check_rows, damaged, located


FAULTS = (SafetensorError, pa.ArrowException, KeyError, ValueError)


@dataclass(frozen=True)
class StoredBlocks:
    """The embeddings of a folder, never all in memory: read in blocks, as often as wanted.

    Args:
        errors: why the unreadable rows are, by row.
        names: of the rows; None where there are none.
        paths: of the parts; `counts` are their rows.
        settings: what the embeddings depend on.
        columns: what else is known of each row: of its file, and the seconds of a video; none where rows are no files.
    """

    errors: dict[int, str]
    names: list[str | None]
    paths: list[Path]
    counts: list[int]
    settings: Mapping[str, Any]
    columns: Mapping[str, list]
    missing: str = MISSING

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.names)

    def blocks(self, first: int = 0, size: int = 4096) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of at most `size` rows (n, D) in order, from row `first` on, each with the number of its first row.

        Raises:
            ValueError: a file there is damaged.
        """
        for path, rows, end in zip(self.paths, self.counts, accumulate(self.counts)):
            start = end - rows
            place = max(first - start, 0)
            if place >= rows:
                continue
            try:
                for block in BLOCKS[self.settings["form"]](path, place, size):
                    yield start + place, block
                    place += len(block)
            except FAULTS as error:
                raise damaged(path, error, self.missing) from error
            if place != rows:
                raise ValueError(f"{path} holds {place} of {rows} rows: delete it, then {self.missing}")


def open_blocks(folder: str | Path, *, missing: str = MISSING) -> StoredBlocks:
    """The embeddings of a folder for reading in blocks, with errors and names; raises as `read`."""
    settings, paths = located(Path(folder), missing)
    errors, names, counts, columns = {}, [], [], {}
    for path in paths:
        notes = read_notes(path, missing)
        errors |= {len(names) + place: message for place, message in notes.errors.items()}
        names += notes.names
        counts.append(len(notes.names))
        for name, values in notes.columns.items():
            columns.setdefault(name, []).extend(values)
    check_rows(folder, len(names), settings, missing)
    return StoredBlocks(errors, names, paths, counts, settings, columns, missing)


@dataclass(frozen=True)
class Notes:
    """What a part says of its rows: why some are missing, by place; their names; what else is known of them."""

    errors: dict[int, str]
    names: list[str | None]
    columns: dict[str, list]


def read_notes(path: Path, missing: str = MISSING) -> Notes:
    """Raises ValueError where the part is damaged."""
    try:
        return NOTES[path.suffix[1:]](path)
    except FAULTS as error:
        raise damaged(path, error, missing) from error


def safetensors_blocks(path: Path, first: int, size: int) -> Iterator[torch.Tensor]:
    with safe_open(path, "pt") as file:
        rows = file.get_slice("embeds")
        count = rows.get_shape()[0]
        for start in range(first, count, size):
            yield rows[start : min(count, start + size)]


def parquet_blocks(path: Path, first: int, size: int) -> Iterator[torch.Tensor]:
    place = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(size, columns=["embedding"]):
            skip = max(0, min(first - place, len(batch)))
            place += len(batch)
            if skip < len(batch):
                column = batch["embedding"].slice(skip)
                yield torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).reshape(len(column), -1)


def safetensors_notes(path: Path) -> Notes:
    with safe_open(path, "pt") as file:
        metadata, count = file.metadata(), file.get_slice("embeds").get_shape()[0]
        first = int(file.get_tensor("rows")[0])
    errors = {int(row) - first: message for row, message in json.loads(metadata["errors"]).items()}
    names = json.loads(metadata["names"]) if "names" in metadata else [None] * count
    return Notes(errors, names, json.loads(metadata.get("columns", "{}")))


def parquet_notes(path: Path) -> Notes:
    with pyarrow.parquet.ParquetFile(path) as file:
        there = set(file.schema_arrow.names)
        table = file.read(columns=["error", *sorted(there & {"name", *COLUMN_TYPES})])
    errors = enumerate(table["error"].to_pylist())
    names = table["name"].to_pylist() if "name" in there else [None] * len(table)
    columns = {name: table[name].to_pylist() for name in COLUMN_TYPES if name in there}
    return Notes({place: message for place, message in errors if message is not None}, names, columns)


BLOCKS = {"safetensors": safetensors_blocks, "parquet": parquet_blocks}
NOTES = {"safetensors": safetensors_notes, "parquet": parquet_notes}
