"""Rows through `datasets`: a name on the Hub, or a local file or folder in any of the usual layouts."""

import re
from pathlib import Path
from typing import cast

import datasets


FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def load(source: str, *, config: str | None = None, split: str | None = None) -> datasets.Dataset:
    """Rows of one split.

    Args:
        source: a name on the Hub, or locally a Parquet, CSV or JSON file; a folder of Parquet files; a folder written
            by `save_to_disk`; the WebDataset layout of clip_benchmark (`<split>/0.tar`); or an image folder (one
            subfolder a class, or `metadata.csv`).
        config: configuration of a dataset on the Hub.
        split: "test" unless given where there are several; a file or folder without splits is one.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no rows, or a split that does not exist.
    """
    try:
        found = _load(source, config, split)
    except ValueError as error:
        if "corresponds to no data" in str(error):  # how `datasets` says that a file is empty
            raise ValueError(f"{source} has no rows") from error
        raise
    if not len(found):
        raise ValueError(f"{source} has no rows")
    return found


def first_rows(rows: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    return rows.select(range(min(limit, len(rows)))) if limit else rows


def _load(source: str, config: str | None, split: str | None) -> datasets.Dataset:
    if Path(source).exists():
        return _load_local(Path(source), split)
    if source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} does not exist")
    if source.startswith("hf://"):  # WebDataset files on the Hub
        return datasets.load_dataset("webdataset", data_files=f"{source}/{split or 'test'}/*.tar", split="train")
    return datasets.load_dataset(source, config, split=split or "test")


def _load_local(path: Path, split: str | None) -> datasets.Dataset:
    if path.is_file():
        kind = FILES.get(path.suffix)
        if kind is None:
            raise ValueError(f"{path} is of no known kind; known are {', '.join(FILES)}")
        _refuse_split(path, split)
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    if (path / "dataset_dict.json").exists():
        splits = cast(datasets.DatasetDict, datasets.load_from_disk(str(path)))
        return splits[_choose_split([str(name) for name in splits], split)]
    if (path / "state.json").exists():
        _refuse_split(path, split)
        return cast(datasets.Dataset, datasets.load_from_disk(str(path)))
    folders = [folder.name for folder in path.iterdir() if folder.is_dir()]
    known = [name for name in folders if name in ("train", "validation", "val", "test", split)]
    if not known:
        _refuse_split(path, split)
    part = path / _choose_split(known, split) if known else path
    for pattern, kind in (("*.tar", "webdataset"), ("**/*.parquet", "parquet")):
        files = sorted(map(str, part.glob(pattern)), key=_natural)
        if files:
            return datasets.load_dataset(kind, data_files=files, split="train")
    return datasets.load_dataset("imagefolder", data_dir=str(part), split="train")


def _refuse_split(path: Path, split: str | None) -> None:
    if split is not None:
        raise ValueError(f"{path} has no splits, so there is no split {split!r}")


def _choose_split(known: list[str], split: str | None) -> str:
    if split is None:
        split = next((name for name in ("test", "validation", "val", "train") if name in known), known[0])
    if split not in known:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(sorted(known))}")
    return split


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
