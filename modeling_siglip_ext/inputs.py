"""What is one input and what are many: in lists, arrays, tables, mappings, folders, open files and datasets.

`encode_images`, `encode_texts`, the pipeline and the evaluation all ask here, so that the same thing means the same
everywhere. Tables and datasets are known by what they offer, so that none of their packages is imported.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .images import CHANNELS, is_image_file, is_image_mapping


ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
    | {".webm", ".wmv"}
)
IMAGE = "an image (H, W), (H, W, C) or (C, H, W)"


def is_video_file(path: str | os.PathLike) -> bool:
    """Whether a file's name says that it is a video; not one that a Mac put beside it (`._a.mov`)."""
    name = os.path.basename(os.fspath(path))
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


FILES = {"image": is_image_file, "video": is_video_file}


@dataclass(frozen=True)
class Inputs:
    """Single inputs, to be taken once.

    Args:
        items: whatever `load_image` takes, or texts.
        count: their number where it is known.
        single: whether one input was given, not a collection.
    """

    items: Iterable[Any]
    count: int | None
    single: bool = False


def inputs_of(source: Any, column: str | None = None, kind: str = "image") -> Inputs:
    """The single inputs of what somebody gave.

    An array or tensor of two dimensions is one image, as is one of three with 1, 3 or 4 channels at an end; other
    arrays are taken along their first dimension.

    Args:
        source: one input, a collection or stream of them, a folder of images, a mapping or table with a column of them
            (pandas, polars, pyarrow, `datasets`).
        column: of a table, a mapping or a list of rows; `kind` unless given.
        kind: "image", "text" or "video".

    Raises:
        ValueError: no such column, a folder without images, or an array that is no image.
        TypeError: something that is neither one input nor a collection; while images are taken, pairs or lists.
    """
    if kind in FILES and isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        return collection(files_below(source, kind), None)
    if isinstance(source, ONE) or (kind == "image" and column is None and is_image_mapping(source)):
        return Inputs([source], 1, single=True)
    if isinstance(source, Mapping) or hasattr(source, "column_names") or hasattr(source, "columns"):
        return of_table(source, column or kind, kind)
    if hasattr(source, "as_py"):  # a value of pyarrow
        return inputs_of(source.as_py(), column, kind)
    if hasattr(source, "read"):
        if kind in FILES:
            return Inputs([source], 1, single=True)
        raise TypeError("an open file is not a text: give its lines, as file.read().splitlines() does")
    if isinstance(source, (set, frozenset)):
        raise TypeError(f"a set has no order, so nobody could tell which {kind} a row belongs to: give a list")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return of_array(source, column, kind)
    if hasattr(source, "column_name") and hasattr(getattr(source, "source", None), "column_names"):
        return of_table(source.source, source.column_name, kind)  # a column of `datasets`
    return collection(source, column, kind)


def of_array(array: np.ndarray | torch.Tensor, column: str | None, kind: str) -> Inputs:
    shape = tuple(array.shape)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":  # texts, paths, any objects
        if array.ndim == 2 and shape[1] == 1:  # one column of a table
            array = array[:, 0]
        if array.ndim > 2 and kind == "image":  # what numpy makes of PIL images of one size
            return of_array(np.array(array.tolist()), column, kind)
        return inputs_of(array.item(), column, kind) if array.ndim == 0 else collection(array.tolist(), column, kind)
    if kind == "text":
        raise TypeError(f"numbers of shape {shape} are no texts; token ids go to model.get_text_features")
    if len(shape) == 3 and shape[-1] == 2 and shape[0] not in CHANNELS:  # grey with transparency, as numpy has it
        raise ValueError(f"an array of shape {shape} is not {IMAGE} with 1, 3 or 4 channels")
    if len(shape) == 2 or (len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS)):
        return Inputs([array], 1, single=True)
    if len(shape) not in (3, 4):
        raise ValueError(f"an array of shape {shape} is neither {IMAGE} nor several of them, (N, …)")
    return Inputs(array, shape[0])


def of_table(source: Any, column: str, kind: str) -> Inputs:
    """A column of a mapping, of a data set, or of a table of pandas, polars or pyarrow."""
    if isinstance(source, Mapping) and source and all(hasattr(part, "column_names") for part in source.values()):
        raise ValueError(f"the data set has the splits {listed(source)}: choose one")
    names = (
        source if isinstance(source, Mapping) else getattr(source, "column_names", getattr(source, "columns", None))
    )
    if names is not None and column not in names:
        what = "mapping" if isinstance(source, Mapping) else "table"
        raise ValueError(f"the {what} has no column {column!r}; it has {listed(names)}: give column=")
    if hasattr(source, "select_columns"):  # datasets.Dataset or IterableDataset
        rows = undecoded(unformatted(source), column).select_columns([column])
        return Inputs(cells(rows, column), len(source) if hasattr(source, "__len__") else None)
    cell = source.column(column) if callable(getattr(source, "column", None)) else source[column]
    return inputs_of(cell, None, kind)


def collection(source: Any, column: str | None, kind: str = "image") -> Inputs:
    count = len(source) if hasattr(source, "__len__") else None
    if count is not None and not hasattr(source, "__iter__") and hasattr(source, "__getitem__"):
        # a data set of torch; it need not raise IndexError at its end, by which Python would know it
        source = map(source.__getitem__, range(count))
    try:
        items: Iterator[Any] = iter(source)
    except TypeError:
        what = type(source).__name__
        raise TypeError(f"an object of type {what} is no {kind} and no collection of {kind}s") from None
    if hasattr(source, "type") and hasattr(source, "to_pylist"):  # pyarrow
        items = (scalar.as_py() for scalar in items)
    if column is not None:
        return Inputs(cells(items, column), count)
    return Inputs(single_images(items) if kind == "image" else items, count)


def single_images(items: Iterable[Any]) -> Iterator[Any]:
    """Raises TypeError for what is no image by its type, as the rows of torchvision's data sets are."""
    for place, item in enumerate(items):
        if isinstance(item, (tuple, list)):
            raise TypeError(
                f"input {place} is a {type(item).__name__} of {len(item)}, not an image: give the images alone, as "
                "(image for image, _ in data) does"
            )
        yield item


def cells(rows: Iterable[Any], column: str) -> Iterator[Any]:
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping) or column not in row:
            what = f"has {listed(row)}" if isinstance(row, Mapping) else f"is a {type(row).__name__}"
            raise ValueError(f"row {place} has no {column!r}; it {what}")
        yield row[column]


def files_below(folder: str | os.PathLike, kind: str) -> list[Path]:
    """All files of a kind below a folder, by their suffix, in order of their names.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file, or holds none.
    """
    if not os.fspath(folder) or not os.path.exists(folder):
        raise FileNotFoundError(f"the folder {os.fspath(folder)!r} does not exist")
    if not os.path.isdir(folder):
        raise ValueError(f"{os.fspath(folder)} is a file, not a folder of {kind}s")
    files = sorted(path for path in Path(folder).rglob("*") if FILES[kind](path) and path.is_file())
    if not files:
        raise ValueError(f"{os.fspath(folder)} holds no {kind} files")
    return files


def undecoded(source: Any, column: str) -> Any:
    """A dataset whose images stay bytes until a worker decodes them, so that a broken one spoils only its row."""
    features = getattr(source, "features", None)
    if features and type(features.get(column)).__name__ == "Image" and features[column].decode:
        return source.cast_column(column, type(features[column])(decode=False))
    return source


def unformatted(source: Any) -> Any:
    """A dataset whose rows are Python's own values, all columns among them; a transform of the user's own stays."""
    kind = (getattr(source, "format", None) or {}).get("type", "custom")
    return source if kind == "custom" else source.with_format(None)


def listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
