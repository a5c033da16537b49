"""Stored embeddings in blocks: more of them than memory holds, read in order as often as wanted."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open

from .embedding_store import MISSING, damaged, located


FAULTS = (SafetensorError, pa.ArrowException, KeyError, ValueError)


@dataclass(frozen=True)
class StoredBlocks:
    """The embeddings of a folder, never all in memory: read in blocks, as often as wanted.

    Args:
        rows: how many there are.
        errors: why the unreadable rows are, by row.
        names: of the rows; None where there are none.
    """

    rows: int
    errors: dict[int, str]
    names: list[str | None]
    paths: list[Path]
    settings: Mapping[str, Any]
    missing: str = MISSING

    def blocks(self, first: int = 0, size: int = 4096) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of at most `size` rows (n, D) in order, from row `first` on, each with the number of its first row.

        Raises:
            ValueError: a file there is damaged.
        """
        part_rows = self.settings["part_rows"]
        for part, path in enumerate(self.paths):
            start = part * part_rows
            rows = min(part_rows, self.rows - start)
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
    errors, names = {}, []
    for path in paths:
        try:
            part_errors, part_names = NOTES[settings["form"]](path)
        except FAULTS as error:
            raise damaged(path, error, missing) from error
        errors |= part_errors
        names += part_names
    if len(names) != settings["rows"] or not names:
        raise ValueError(f"{folder} holds {len(names)} of {settings['rows']} rows: delete it, then {missing}")
    return StoredBlocks(len(names), errors, names, paths, settings, missing)


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


def safetensors_notes(path: Path) -> tuple[dict[int, str], list[str | None]]:
    with safe_open(path, "pt") as file:
        metadata, count = file.metadata(), file.get_slice("embeds").get_shape()[0]
    errors = {int(row): message for row, message in json.loads(metadata["errors"]).items()}
    return errors, json.loads(metadata["names"]) if "names" in metadata else [None] * count


def parquet_notes(path: Path) -> tuple[dict[int, str], list[str | None]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = [name for name in ("row", "error", "name") if name in file.schema_arrow.names]
        table = file.read(columns=names)
    errors = zip(table["row"].to_pylist(), table["error"].to_pylist())
    found = table["name"].to_pylist() if "name" in names else [None] * len(table)
    return {row: message for row, message in errors if message is not None}, found


BLOCKS = {"safetensors": safetensors_blocks, "parquet": parquet_blocks}
NOTES = {"safetensors": safetensors_notes, "parquet": parquet_notes}
