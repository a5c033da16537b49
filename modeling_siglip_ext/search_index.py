"""A FAISS index beside stored embeddings, which says by which weights it was made and is refused by others.

One small file names the index, the names of its rows and what they were made of; it is replaced in one step, when both
are written. What was indexed before stays whole until then, also where the embeddings themselves have changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from torch import nn

from siglip_ext_runtime import ExportedModel

from .embedding_blocks import StoredBlocks, open_blocks
from .embedding_parts import COLUMN_TYPES
from .embedding_store import weights_fingerprint
from .files import new_file, read_json, write_json


POINTER = "_index.json"
TRAINED_ON = 1 << 18  # rows that coarse centres and codebooks are fitted to
AGAIN = "run `siglip-ext-eval embed` with --index"
SPAN = ("start", "end")


def faiss() -> Any:
    """Raises ImportError with the remedy where FAISS is missing."""
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError("an index needs FAISS: pip install 'siglip-ext[search]'") from error


def check_kind(kind: str) -> None:
    """Whether FAISS knows a kind of index, before anything is computed.

    Raises:
        ImportError: FAISS is missing.
        ValueError: it does not.
    """
    library = faiss()
    try:
        library.index_factory(64, f"IDMap2,{kind}", library.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        # all else depends on the width of the vectors
        if any(said in str(error) for said in ("could not parse", "METRIC_L2")):
            message = f"FAISS knows no index {kind!r} of inner products: take Flat, HNSW32 or IVF4096,SQ8, say"
            raise ValueError(message) from error


@dataclass(frozen=True)
class Match:
    """A row that was found: its name, its cosine with the query, and of a video the seconds from `start` to `end`."""

    name: str | None
    row: int
    score: float
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class SearchIndex:
    """An open index.

    Args:
        about: what its embeddings were made of, as `embed` wrote it, and how it was made.
        index: FAISS's own.
        rows: `name`, and for videos `start` and `end`, of the embeddings at that time.
    """

    about: Mapping[str, Any]
    index: Any
    rows: pa.Table

    def search(self, queries: np.ndarray, count: int = 10) -> list[list[Match]]:
        """The nearest rows of each query (n, D) float32 of unit length, best first; fewer where there are fewer.

        Raises:
            ValueError: queries of another shape, or no row to be found.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.index.d:
            raise ValueError(f"queries must have the shape (n, {self.index.d}), got {queries.shape}")
        if count < 1:
            raise ValueError(f"count={count} must be at least 1")
        scores, rows = self.index.search(queries, count)
        found = zip(rows.tolist(), scores.tolist())
        return [[self.match(row, score) for row, score in zip(*one) if row >= 0] for one in found]

    def match(self, row: int, score: float) -> Match:
        span = {name: self.rows[name][row].as_py() for name in SPAN if name in self.rows.column_names}
        return Match(self.rows["name"][row].as_py(), row, score, **span)


def write_index(folder: str | Path, kind: str = "Flat") -> bool:
    """Index all embeddings of a folder, unless that was done; whether anything was written.

    Args:
        folder: of embeddings of unit length, as `siglip-ext-eval embed` writes it.
        kind: as FAISS's index factory has it: "Flat" is exact, "HNSW32" and "IVF4096,PQ64" are quick for millions.

    Raises:
        ImportError: FAISS is missing.
        ValueError: FAISS knows no such kind, or wants more embeddings for it.
        FileNotFoundError: there are no embeddings.
    """
    library, folder = faiss(), Path(folder)
    stored = open_blocks(folder)
    state = state_of(stored, kind)
    if (folder / POINTER).exists() and read_json(folder / POINTER, AGAIN).get("state") == state:
        return False
    names = {"index": f"_index-{state}.faiss", "rows": f"_index-{state}.parquet"}
    with new_file(folder / names["index"], replace=True) as draft:
        library.write_index(filled(library, stored, kind), str(draft))
    columns = {"name": pa.array(stored.names, pa.string())}
    columns |= {name: pa.array(stored.columns[name], COLUMN_TYPES[name]) for name in SPAN if name in stored.columns}
    with new_file(folder / names["rows"], replace=True) as draft:
        pyarrow.parquet.write_table(pa.table(columns), draft)
    write_json(folder / POINTER, {**stored.settings, "index_kind": kind, "state": state, **names})
    for path in folder.glob("_index-*"):
        if path.name not in names.values():
            path.unlink()
    return True


def state_of(stored: StoredBlocks, kind: str) -> str:
    """A hash of what an index depends on: the settings, and which rows there are."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([kind, dict(stored.settings)], sort_keys=True).encode())
    for rows in (stored.names, stored.columns.get("content", ()), sorted(stored.errors)):
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()


def filled(library: Any, stored: StoredBlocks, kind: str) -> Any:
    """An index of all rows that could be embedded, under their numbers.

    Raises:
        ValueError: FAISS's reason.
    """
    try:
        index = None
        for first, block in stored.blocks():
            if index is None:
                index = library.index_factory(block.shape[1], f"IDMap2,{kind}", library.METRIC_INNER_PRODUCT)
                if not index.is_trained:
                    index.train(sample(stored))
            rows = np.arange(first, first + len(block))
            there = block.isfinite().all(1).numpy()
            index.add_with_ids(block.numpy()[there], rows[there])
        return index
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].split("\n")[0]
        raise ValueError(f"FAISS makes no index {kind!r} of {stored.rows} embeddings: {reason}") from error


def sample(stored: StoredBlocks) -> np.ndarray:
    """Rows from all over, at most `TRAINED_ON`."""
    step = -(-stored.rows // TRAINED_ON)
    parts = [block[-first % step :: step].numpy() for first, block in stored.blocks()]
    rows = np.concatenate(parts)
    return rows[np.isfinite(rows).all(1)]


def open_index(folder: str | Path, model: nn.Module | ExportedModel) -> SearchIndex:
    """The index of a folder, for queries that `model` embeds, one of torch or an exported one.

    Raises:
        ImportError: FAISS is missing.
        FileNotFoundError: there is none.
        ValueError: it was made with other weights or in another precision, or is damaged.

    Example:

        index = open_index("my-embeddings", model)
        for match in index.search(encode_texts(model, processor, "a cat on a sofa"), 3)[0]:
            print(match.name, match.score)
    """
    library, folder = faiss(), Path(folder)
    about = read_json(folder / POINTER, AGAIN)
    weights = weights_fingerprint(model)
    if about.get("weights") != weights:
        raise ValueError(
            f"the index in {folder} was made with other weights or precision ({about.get('model')}, "
            f"{about.get('dtype')}, {about.get('weights')}; here {weights}): use that model, or embed anew"
        )
    try:
        index = library.read_index(str(folder / about["index"]))
        return SearchIndex(about, index, pyarrow.parquet.read_table(folder / about["rows"]))
    except (RuntimeError, KeyError, OSError, pa.ArrowException) as error:
        raise ValueError(f"the index in {folder} is damaged ({str(error).splitlines()[0]}): {AGAIN}") from error
