"""Stored embeddings in blocks: more of them than memory holds, read in order as often as wanted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from .embedding_parts import MISSING, read_blocks, read_notes
from .embedding_store import check_rows, located


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
            for block in read_blocks(path, place, size, self.missing):
                yield start + place, block
                place += len(block)
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
