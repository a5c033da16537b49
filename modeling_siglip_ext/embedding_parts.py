"""One file of stored embeddings, consecutive rows with what is known of each: how it is written and read, by its form.

A form is the suffix of the files: Parquet for other programs, safetensors for those that map them.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


MISSING = "run the command that writes them; it continues where it stopped"
# of what is known of a row besides its name: about its file, and for videos the seconds it is of
COLUMN_TYPES = {
    "size": pa.int64(),
    "changed": pa.int64(),
    "content": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
}


@dataclass(frozen=True)
class Notes:
    """What a part says of its rows.

    Args:
        errors: why some are missing, by place in the part.
        names: None for a row without; to be written all of them, or none at all.
        columns: what else is known of each, by the names of `COLUMN_TYPES`; such a part has no fixed place.
    """

    errors: Mapping[int, str] = field(default_factory=dict)
    names: Sequence[str | None] = ()
    columns: Mapping[str, Sequence] = field(default_factory=dict)


def write_safetensors(path: Path, first: int, embeds: torch.Tensor, notes: Notes) -> None:
    rows = torch.arange(first, first + len(embeds))
    errors = {first + place: message for place, message in notes.errors.items()}
    metadata = {"errors": json.dumps(errors, ensure_ascii=False)}
    if notes.names:
        metadata["names"] = json.dumps(notes.names, ensure_ascii=False)
    if notes.columns:
        metadata["columns"] = json.dumps({name: list(values) for name, values in notes.columns.items()})
    save_file({"embeds": embeds.contiguous(), "rows": rows}, path, metadata=metadata)


def write_parquet(path: Path, first: int, embeds: torch.Tensor, notes: Notes) -> None:
    flat = pa.array(embeds.reshape(-1).numpy())
    table = {
        "row": pa.array(range(first, first + len(embeds)), pa.int64()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeds.shape[1]),
        "error": pa.array([notes.errors.get(place) for place in range(len(embeds))], pa.string()),
    }
    if notes.names:
        table["name"] = pa.array(notes.names, pa.string())
    if notes.columns:
        del table["row"]
        table |= {name: pa.array(values, COLUMN_TYPES[name]) for name, values in notes.columns.items()}
    pyarrow.parquet.write_table(pa.table(table), path)


def safetensors_embeds(path: Path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("embeds")


def parquet_embeds(path: Path) -> torch.Tensor:
    table = pyarrow.parquet.read_table(path, columns=["embedding"])
    return vectors(table["embedding"].combine_chunks())


def vectors(column: pa.FixedSizeListArray) -> torch.Tensor:
    """The rows (n, D) of a column."""
    return torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).copy()).reshape(len(column), -1)


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
                yield vectors(batch["embedding"].slice(skip))


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


class Form(NamedTuple):
    """Of a kind of file: its writer; and of a file all embeddings (rows, D), its notes, and blocks from a row on."""

    write: Callable[[Path, int, torch.Tensor, Notes], None]
    embeds: Callable[[Path], torch.Tensor]
    notes: Callable[[Path], Notes]
    blocks: Callable[[Path, int, int], Iterator[torch.Tensor]]


FORMS = {
    "safetensors": Form(write_safetensors, safetensors_embeds, safetensors_notes, safetensors_blocks),
    "parquet": Form(write_parquet, parquet_embeds, parquet_notes, parquet_blocks),
}


def form_of(path: Path) -> Form:
    return FORMS[path.suffix[1:]]


@contextmanager
def reading(path: Path, missing: str) -> Generator[None]:
    """Raises ValueError where the part that is read turns out to be damaged; `missing` is the remedy."""
    try:
        yield
    except (SafetensorError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, then {missing}") from error


def write_part(path: Path, first: int, embeds: torch.Tensor, notes: Notes = Notes()) -> None:
    """Write embeddings (rows, D), of which `first` is the number of the first row, in the form that `path` says."""
    form_of(path).write(path, first, embeds, notes)


def read_embeds(path: Path, missing: str = MISSING) -> torch.Tensor:
    """All embeddings (rows, D) of a part; those of safetensors stay mapped from the file.

    Raises:
        ValueError: it is damaged.
    """
    with reading(path, missing):
        return form_of(path).embeds(path)


def read_notes(path: Path, missing: str = MISSING) -> Notes:
    """
    Raises:
        ValueError: the part is damaged.
    """
    with reading(path, missing):
        return form_of(path).notes(path)


def read_blocks(path: Path, first: int, size: int, missing: str = MISSING) -> Iterator[torch.Tensor]:
    """Embeddings of a part from its row `first` on, at most `size` at a time.

    Raises:
        ValueError: it is damaged.
    """
    with reading(path, missing):
        yield from form_of(path).blocks(path, first, size)
