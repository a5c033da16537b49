"""The one reader of data sets, for training and for evaluation: files, folders, URLs, names on the Hub."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, cast

import datasets
import fsspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from datasets.exceptions import DatasetGenerationError

from .columns import IMAGE_COLUMNS, usual
from .image_folder import metadata_files, read_folder
from .shard_rows import load_shards
from .sources import KNOWN, check_present, expand, has_images, is_hidden, is_url, kind_of, names_many
from .tables import read_table, with_images


SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing")
PREFERRED = ("test", "validation", "val", "train")
NO_IMAGES = ""
"""As `image_column`: paths and URLs in a table are what is written there."""


def load(
    source: str,
    *,
    config: str | None = None,
    split: str | None = None,
    separator: str | None = None,
    image_column: str | None = None,
) -> datasets.Dataset:
    """Rows of one split.

    Args:
        source: a file or URL - Parquet, Arrow, CSV, TSV, JSON, JSON lines, tar, text and tar also compressed - or
            several as a glob or brace range; a folder of such files, of images (see `read_folder`), or written by
            `save_to_disk`, perhaps with a subfolder a split; a name on the Hub. Columns of paths are relative to the
            folder of their file.
        config: configuration of a dataset on the Hub.
        split: "test" unless given where there are several; a file or folder without splits is one.
        separator: of the values in a CSV file; found in its first line unless given.
        image_column: where it has none of the usual names: the one whose paths are those of images; or `NO_IMAGES`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no rows, a split that does not exist, or a file that cannot be read; named.
    """
    if not source:
        raise ValueError("the name of the dataset is empty")
    with named_errors(source):
        found = _load(source, config, split, separator, image_column)
    if not len(found):
        raise ValueError(f"{source} has no rows")
    return found


@contextmanager
def named_errors(source: str) -> Generator[None]:
    """What `datasets` raises for files that it cannot read, as a ValueError that names the source."""
    try:
        yield
    except DatasetGenerationError as error:
        reason = error.__cause__ or error
        if "corresponds to no data" in str(reason):  # how `datasets` says that a file is empty
            raise ValueError(f"{source} has no rows") from error
        raise ValueError(f"{source} cannot be read: {reason}") from error
    except pa.ArrowException as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{source} has no rows") from error
        raise


def first_rows(rows: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """
    Raises:
        ValueError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def is_local(source: str) -> bool:
    """Whether a source is files, here or behind URLs, and no name on the Hub.

    Raises:
        FileNotFoundError: it can only be a file, which is not there.
    """
    if Path(source).expanduser().exists() or is_url(source) or names_many(source):
        return True
    if source.startswith((".", "/", "~")) or kind_of(source) or source.count("/") > 1:
        raise FileNotFoundError(f"{source} does not exist")
    return False


def splits_in(source: str) -> list[str]:
    """The splits of a folder; none of a file, or of a folder that is one split."""
    path = Path(source).expanduser()
    if (path / "dataset_dict.json").is_file():
        with named_errors(source):
            return [str(name) for name in cast(datasets.DatasetDict, datasets.load_from_disk(str(path)))]
    if not path.is_dir() or (path / "state.json").is_file():
        return []
    folders = [folder.name for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name)]
    known = sorted(name for name in folders if name in SPLITS)
    # one class among others may be called "train"
    return known if len(known) > 1 or len(known) == len(folders) else []


def _load(source: str, config: str | None, split: str | None, separator: str | None, image: str | None) -> Any:
    if source.startswith("hf://") and kind_of(source) is None:  # a repository of WebDataset files
        return load_shards(expand(f"{source}/{split or 'test'}/*.tar"))
    if not is_local(source):
        if separator is not None:
            raise ValueError(f"separator is of CSV files; {source} is a name on the Hub")
        return datasets.load_dataset(source, config, split=split or "test")
    if config is not None:
        raise ValueError(f"a configuration is of data sets on the Hub: {source} has none")
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, split, separator, image)
    _refuse_split(source, split)
    return _load_files([str(path)] if path.exists() else expand(source), source, separator, image)


def _load_files(files: Sequence[str], source: str, separator: str | None, image: str | None) -> datasets.Dataset:
    kinds = {kind_of(file) for file in files}
    if None in kinds or len(kinds) > 1:
        what = "is of no known kind" if None in kinds else "are files of several kinds"
        raise ValueError(f"{source} {what}; known are {KNOWN}")
    check_present(files)
    kind = str(kinds.pop())
    if separator is not None and kind != "csv":
        raise ValueError(f"separator is of CSV files; {source} is none")
    if kind == "tar":
        return load_shards(files)
    if kind in ("csv", "json"):
        parts = [read_table(file, kind, separator) for file in files]
    elif any(map(is_url, files)):
        parts = [_read_arrow(file, kind) for file in files]
    else:  # through a cache on disk, as these may be larger than memory
        escaped = [escape(str(Path(file).absolute())) for file in files]
        parts = [datasets.load_dataset(kind, data_files=escaped, split="train")]
    if image != NO_IMAGES and (image is None or image not in parts[0].column_names):
        image = usual(parts[0].column_names, IMAGE_COLUMNS)
    if len(parts) > 1:
        parts = [with_images(part, image or None, file) for part, file in zip(parts, files)]
        return datasets.concatenate_datasets(parts)
    return with_images(parts[0], image or None, files[0])


def _read_arrow(url: str, kind: str) -> datasets.Dataset:
    with fsspec.open(url, "rb") as file:
        table = pyarrow.parquet.read_table(file) if kind == "parquet" else pa.ipc.open_stream(file).read_all()
    return datasets.Dataset(table)


def _load_folder(path: Path, split: str | None, separator: str | None, image: str | None) -> datasets.Dataset:
    known = splits_in(str(path))
    if not known and split is not None and (path / split).is_dir():
        known = [split]
    if (path / "dataset_dict.json").is_file():
        saved = cast(datasets.DatasetDict, datasets.load_from_disk(str(path)))
        return saved[_choose_split(known, split)]
    if not known:
        _refuse_split(str(path), split)
    if (path / "state.json").is_file():
        return cast(datasets.Dataset, datasets.load_from_disk(str(path)))
    part = path / _choose_split(known, split) if known else path
    files = files_in(part)
    if files:
        return _load_files(files, str(part), separator, image)
    if separator is not None:
        raise ValueError(f"separator is of CSV files; {part} holds none")
    return read_folder(part)


def files_in(folder: Path) -> list[str]:
    """The tables or shards that a folder is, in natural order; none of a folder of images."""
    if metadata_files(folder):
        return []
    patterns = [("**/*.parquet", ("parquet",))]
    if not has_images(folder):
        patterns = [("*", ("tar",)), *patterns, ("*", ("csv", "json", "arrow"))]
    for pattern, kinds in patterns:
        names = (path for path in folder.glob(pattern) if kind_of(path) in kinds and path.is_file())
        found = sorted((str(path) for path in names if not is_hidden(path.name)), key=_natural)
        if found:
            return found
    return []


def _refuse_split(source: str, split: str | None) -> None:
    if split is not None:
        raise ValueError(f"{source} has no splits, so there is no split {split!r}")


def _choose_split(known: list[str], split: str | None) -> str:
    if split is None:
        split = next((name for name in PREFERRED if name in known), known[0])
    if split not in known:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(sorted(known))}")
    return split


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
