"""Folders of images: with a table of metadata, with text files beside the images, with a subfolder a class."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from modeling_siglip_ext.embedding_store import fingerprint
from modeling_siglip_ext.images import image_suffixes, is_image_file

from .columns import CAPTION_COLUMNS, IMAGE_COLUMNS, usual
from .samples_of_members import CAPTION_SUFFIXES, PARTS
from .sources import NAMED, is_hidden, kind_of
from .tables import read_table, with_images


logger = logging.get_logger(__name__)
TABLES = ("csv", "json", "parquet")
TEXT_SUFFIXES = (*CAPTION_SUFFIXES, ".json")


def read_folder(folder: Path) -> datasets.Dataset:
    """A folder of images.

    Returns:
        `image`, and the columns of `metadata.csv` (or .tsv, .json, .jsonl, .parquet) in it or its subfolders; or
        `caption` (list of str) of the text files beside the images (`cat.jpg`, `cat.txt`), empty where an image has
        none; or `label`, the subfolder of each image, where there are several.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: metadata that cannot be read, caption files that are not UTF-8; named.
    """
    metadata = metadata_files(folder)
    if metadata:
        parts = [_from_metadata(path) for path in metadata]
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    images, texts = files_below(folder)
    if not images:
        raise FileNotFoundError(f"{folder} holds no image: no file has the suffix of one")
    columns: dict[str, Any] = {"image": list(map(str, images))}
    kinds: dict[str, Any] = {"image": datasets.Image()}
    if any(str(path.with_suffix("")) in texts for path in images):
        columns["caption"] = _captions(folder, images, texts)
        kinds["caption"] = datasets.List(datasets.Value("string"))
    elif labels := _labels(folder, images):
        columns["label"] = labels
        kinds["label"] = datasets.ClassLabel(names=sorted(set(labels)))
    found = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    about = [path.stat() for path in images]
    marks = [f"{one.st_size} {one.st_mtime_ns}" for one in about]
    found._fingerprint = fingerprint({"columns": columns, "images": marks})
    return found


def metadata_files(folder: Path) -> list[Path]:
    """The table that says what the images are; where there is none, those of the subfolders.

    Raises:
        ValueError: several in one folder.
    """
    for level in ("", "*/"):
        found = [
            path for path in sorted(folder.glob(f"{level}metadata.*")) if kind_of(path) in ("csv", "json", "parquet")
        ]
        if len({path.parent for path in found}) < len(found):
            raise ValueError(f"{folder} holds {' and '.join(path.name for path in found[:3])}: keep one of them")
        if found:
            return found
    return []


def _from_metadata(path: Path) -> datasets.Dataset:
    kind = kind_of(path)
    if kind == "parquet":
        rows = datasets.Dataset.from_parquet(str(path))
        assert isinstance(rows, datasets.Dataset)
    else:
        rows = read_table(str(path), str(kind))
    name = usual(rows.column_names, ("file_name", *IMAGE_COLUMNS))
    if name is None:
        shown = ", ".join(map(repr, rows.column_names))
        raise ValueError(f"{path} has no column of file names, only {shown}: name it file_name")
    rows = with_images(rows, name, str(path))
    if name == "image":
        return rows
    return rows.remove_columns([one for one in rows.column_names if one == "image"]).rename_column(name, "image")


def files_below(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Images in the order of their paths, and by path without suffix the texts; none that a system put there."""
    images, texts = [], {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            path = Path(place, name)
            if is_hidden(name):
                continue
            if is_image_file(name):
                images.append(path)
            elif path.suffix.lower() in TEXT_SUFFIXES:
                stem = path.with_suffix("")
                named_after_image = stem.suffix.lower() in image_suffixes()  # cat.jpg.txt
                texts.setdefault(str(stem.with_suffix("") if named_after_image else stem), []).append(path)
    return sorted(images), texts


def _captions(folder: Path, images: Sequence[Path], texts: dict[str, list[Path]]) -> list[list[str]]:
    captions, wrong, bare = [], [], []
    for path in images:
        try:
            captions.append(captions_in(texts.get(str(path.with_suffix("")), [])))
        except ValueError as error:
            captions.append([])
            wrong.append(str(error))
            continue
        if not captions[-1]:
            bare.append(path.name)
    if wrong:
        raise ValueError(f"{len(wrong)} caption files cannot be read: {'; '.join(wrong[:NAMED])}")
    if bare:
        shown = ", ".join(bare[:NAMED])
        logger.warning("%d of %d images in %s have no caption, e.g. %s", len(bare), len(images), folder, shown)
    return captions


def captions_in(files: Sequence[Path]) -> list[str]:
    """The captions of one image in the texts beside it; those in JSON where no other text has any.

    Raises:
        ValueError: naming a file that is no text in UTF-8.
    """
    row: dict[str, Any] = {}
    for suffix, read in PARTS.items():
        for path in sorted(file for file in files if file.suffix.lower() == suffix):
            try:
                read(row, path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path} {error}") from error
    name = usual(row, CAPTION_COLUMNS)
    value = None if name is None else row[name]
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text.strip()]


def _labels(folder: Path, images: Sequence[Path]) -> list[str]:
    """The name of the folder of each image; none where they are all in one, or not equally deep."""
    parents = [path.parent.relative_to(folder) for path in images]
    several = len(set(parents)) > 1 and len({len(parent.parts) for parent in parents}) == 1
    return [parent.name for parent in parents] if several else []
