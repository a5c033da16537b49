"""Tar shards as rows with an index: read once, kept by `datasets` in a cache on disk."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from modeling_siglip_ext.embedding_store import fingerprint

from .samples_of_members import DROPPED
from .sources import NAMED, check_present, is_url
from .tar_shards import checked, read_shard


logger = logging.get_logger(__name__)
SEEN_FOR_FIELDS = 100
SCALARS = {str: "string", int: "int64", float: "float64", bool: "bool"}


def load_shards(files: Sequence[str]) -> datasets.Dataset:
    """The samples of tar files: `__key__`, `image`, and where there are any `caption` (list of str), `cls`, `npy` and
    the fields of JSON whose values are single ones. What is no sample is left out, counted and named.

    Raises:
        FileNotFoundError: a file that is not there.
        OSError: one that cannot be read now. Nothing is kept of it, as the next reading may succeed.
        ValueError: files without an image, or of which most cannot be used.
    """
    check_present(files)
    features = features_of(files)
    mark = fingerprint({"files": [mark_of(file) for file in files], "features": str(features), "version": 1})
    given = {"files": [list(files)], "features": [features]}
    try:
        rows = datasets.Dataset.from_generator(rows_of, features=features, gen_kwargs=given, fingerprint=mark)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
    assert isinstance(rows, datasets.Dataset)
    reasons = rows[DROPPED][:]
    dropped = [row for row, reason in enumerate(reasons) if reason is not None]
    if dropped:
        names = rows.select(dropped[:NAMED])["__key__"]
        shown = "; ".join(f"{name}: {reasons[row]}" for name, row in zip(names, dropped))
        logger.warning("%d of %d samples are left out: %s", len(dropped), len(rows), shown)
        left_out = set(dropped)
        rows = rows.select([row for row in range(len(rows)) if row not in left_out])
    if not len(rows):
        raise ValueError(f"{files[0]} holds no image: {reasons[0] if reasons else 'it is empty'}")
    return rows.remove_columns(DROPPED)


def mark_of(file: str) -> list[Any]:
    """What changes with a file."""
    if not is_url(file):
        about = Path(file).stat()
        return [str(Path(file).absolute()), about.st_size, about.st_mtime_ns]
    files, name = fsspec.core.url_to_fs(file)
    about = files.info(name)
    return [file, about.get("size"), *(str(about.get(key)) for key in ("ETag", "etag", "mtime", "LastModified"))]


def samples_of(files: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """(key, row) of every sample; those without an image have the reason."""
    for file in files:
        for name, row in checked(file, read_shard(file, once=True), images_alone=True):
            if DROPPED not in row and "image" not in row:
                row = {DROPPED: f"no image, only {', '.join(row)}"}
            key = name.removeprefix(f"{file}: ")
            yield (name if DROPPED in row else key), row


def features_of(files: Sequence[str]) -> datasets.Features:
    """The columns that the first samples have."""
    kinds: dict[str, Any] = {}
    for _, row in islice(samples_of(files), SEEN_FOR_FIELDS):
        for name, value in row.items():
            if name == "npy":
                kinds[name] = datasets.List(datasets.Value("int64"))
            elif name == "caption":
                kinds[name] = datasets.List(datasets.Value("string"))
            elif type(value) in SCALARS and kinds.get(name) != datasets.Value("string"):
                kinds[name] = datasets.Value(SCALARS[type(value)])
    kinds |= {"__key__": datasets.Value("string"), "image": datasets.Image(), DROPPED: datasets.Value("string")}
    return datasets.Features(kinds)


def rows_of(files: Sequence[Sequence[str]], features: Sequence[datasets.Features]) -> Iterator[dict]:
    """The rows for `datasets`, which deals lists out to processes: hence lists of one."""
    for key, row in samples_of(files[0]):
        found = {name: fitting(row.get(name), kind) for name, kind in features[0].items()}
        if "image" in row:
            found["image"] = {"bytes": row["image"], "path": None}
        yield {**found, "__key__": key}


def fitting(value: Any, kind: Any) -> Any:
    """A value in the type of its column; None for one that is of another."""
    if isinstance(kind, datasets.List):
        values = value if isinstance(value, list) else [] if value is None else [value]
        wanted = str if kind.feature.dtype == "string" else (int, float)
        return [one for one in values if isinstance(one, wanted)]
    if not isinstance(kind, datasets.Value):
        return None
    if kind.dtype == "string":
        return None if value is None else str(value)
    return value if isinstance(value, (int, float)) and type(value) in SCALARS else None
