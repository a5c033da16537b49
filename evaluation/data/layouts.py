"""Evaluation data through `datasets`: a name on the Hub, or a local folder in any of the usual layouts."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from modeling_siglip_ext.encoding import undecoded


IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "npy")
CAPTION_COLUMNS = ("caption", "captions", "sentences", "text", "texts", "txt", "raw")
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
        splits = datasets.load_from_disk(str(path))
        return splits[_choose_split(list(splits), split)]
    if (path / "state.json").exists():
        _refuse_split(path, split)
        return datasets.load_from_disk(str(path))
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


def column(dataset: datasets.Dataset, given: str | None, usual: Sequence[str], what: str) -> str:
    """The name of a column: the one given, or the first of the usual ones.

    Raises:
        ValueError: there is none; the message lists the columns that there are.
    """
    names = [given] if given else usual
    for name in names:
        if name in dataset.column_names:
            return name
    raise ValueError(
        f"the dataset has no {what} column {' or '.join(map(repr, names))}; it has "
        f"{', '.join(dataset.column_names)}: name one with --{what}_column"
    )


def images(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    """The images alone, undecoded, so that a broken one spoils only itself."""
    return undecoded(dataset.select_columns([name]), name)


def labels(dataset: datasets.Dataset, name: str, names: Sequence[str] | None = None) -> list[list[int]]:
    """The right classes of each row: one in most datasets, any number in multi-label ones.

    Args:
        names: all classes, for labels that are strings; those of the column (`label_names`) by default.

    Raises:
        ValueError: a value that is neither a class nor a list of classes.
    """
    known = names or label_names(dataset, name) or ()
    place = {plain(known_name): index for index, known_name in enumerate(known)}
    result = []
    for row, value in enumerate(dataset.select_columns([name])[:][name]):
        values = value if isinstance(value, list) else [value]
        values = [place.get(plain(one), one) if isinstance(one, str) else one for one in values]
        if not all(isinstance(one, (int, bool)) for one in values):
            raise ValueError(f"row {row}: {name} {value!r:.100} is neither a class index nor one of the classes")
        result.append([int(one) for one in values])
    return result


def plain(name: str) -> str:
    return name.replace("_", " ").strip()


def label_names(dataset: datasets.Dataset, name: str) -> list[str] | None:
    """The classes of a label column, where it knows them: those of a ClassLabel, or the strings that occur, sorted."""
    feature = dataset.features[name]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        return None
    rows = dataset.select_columns([name])[:][name]
    return sorted({one for value in rows for one in (value if isinstance(value, list) else [value]) if one})


def captions(dataset: datasets.Dataset, name: str, *, optional: bool = False) -> list[list[str]]:
    """One or several captions a row; a text of several lines is several captions, as in clip_benchmark's files.

    Raises:
        ValueError: a value of another kind, or unless they are optional a row without a caption.
    """
    result = []
    for row, value in enumerate(dataset.select_columns([name])[:][name]):
        texts = value.splitlines() if isinstance(value, str) else [] if value is None and optional else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"row {row}: {name} is {value!r:.100}, neither a caption nor a list of captions")
        texts = [text for text in texts if text.strip()]
        if not texts and not optional:
            raise ValueError(f"row {row} has no caption in {name!r}")
        result.append(texts)
    return result


def lines_beside(source: str, name: str) -> list[str] | None:
    """The lines of a file at the top of a local dataset, such as clip_benchmark's `classnames.txt`."""
    path = Path(source) / name
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else None


def xm3600(folder: str | Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Crossmodal-3600 as it was released: `captions.jsonl`, and the images in `images/`.

    Returns:
        Paths of the images, and for each language the captions of each image.

    Raises:
        FileNotFoundError: an image is missing.
    """
    folder = Path(folder)
    paths, of_language = [], {}
    with open(folder / "captions.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            path = folder / "images" / f"{row['image/key']}.jpg"
            if not path.exists():
                raise FileNotFoundError(f"{path}, named in captions.jsonl, does not exist")
            paths.append(os.fspath(path))
            for language, value in row.items():
                if isinstance(value, Mapping) and "caption" in value:
                    of_language.setdefault(language, []).append(list(value["caption"]))
    wrong = [language for language, rows in of_language.items() if len(rows) != len(paths)]
    if wrong or not paths:
        raise ValueError(f"{folder}: captions for other numbers of images in {', '.join(wrong) or 'all languages'}")
    return paths, of_language


def file_names(dataset: datasets.Dataset, name: str) -> list[str | None]:
    """The file name of each image where the dataset knows it."""
    rows: Iterable[Any] = images(dataset, name)
    if "__key__" in dataset.column_names:
        return list(dataset["__key__"])
    found = []
    for row in rows:
        path = row[name].get("path") if isinstance(row[name], Mapping) else row[name]
        found.append(os.path.basename(path) if isinstance(path, str) else None)
    return found
