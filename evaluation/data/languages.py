"""Images with captions in several languages: Crossmodal-3600, or a dataset with a column for each language."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from modeling_siglip_ext.embedding_store import fingerprint

from . import columns
from .evaluation_data import EvaluationData, Provenance
from .layouts import first_rows, load
from .tables import json_rows


def xm3600(folder: str | Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Crossmodal-3600 as it was released: `captions.jsonl`, and the images in `images/`.

    Returns:
        Paths of the images, and for each language the captions of each image.

    Raises:
        FileNotFoundError: an image is missing.
    """
    folder = Path(folder)
    paths, of_language = [], {}
    for number, row in enumerate(json_rows(str(folder / "captions.jsonl"))):
        if "image/key" not in row:
            raise ValueError(f"{folder}/captions.jsonl is none of Crossmodal-3600: row {number} has no 'image/key'")
        path = folder / "images" / f"{row['image/key']}.jpg"
        if not path.exists():
            raise FileNotFoundError(f"{path}, named in captions.jsonl, does not exist")
        paths.append(os.fspath(path))
        for language, value in row.items():
            if isinstance(value, Mapping) and isinstance(value.get("caption"), list):
                of_language.setdefault(language, []).append(list(value["caption"]))
    wrong = [language for language, rows in of_language.items() if len(rows) != len(paths)]
    if wrong or not paths:
        raise ValueError(f"{folder}: captions for other numbers of images in {', '.join(wrong) or 'all languages'}")
    return paths, of_language


Languages = dict[str, list[list[str]]]


def select_languages(
    source: str | None,
    languages: Sequence[str] | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    separator: str | None = None,
    limit: int | None = None,
    image_column: str | None = None,
) -> tuple[EvaluationData, Languages]:
    """Images, and by language the captions of each.

    Args:
        source: the folder of Crossmodal-3600, or what `load` takes.
        languages: which ones; of a dataset, the columns with their captions.
        config, split, separator, limit, image_column: as in `select`.

    Raises:
        ValueError: a language that is not there, or in which no row has a caption.
    """
    if source is None:
        raise ValueError("give --dataset: the folder of Crossmodal-3600, or a dataset with a column for each language")
    if (Path(source) / "captions.jsonl").exists():
        unread = {"config": config, "split": split, "separator": separator, "image_column": image_column}
        for name, value in unread.items():
            if value is not None:
                raise ValueError(f"{name} has no effect with a folder of Crossmodal-3600: leave it out")
        paths, of_language = xm3600(source)
        rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
        rows = first_rows(rows, limit)
        unknown = [language for language in languages or () if language not in of_language]
        if unknown:
            raise ValueError(f"there are no captions in {', '.join(unknown)}; there are {', '.join(of_language)}")
        of_language = {language: of_language[language][: len(rows)] for language in languages or of_language}
        stats = [os.stat(path) for path in paths[: len(rows)]]
        marks = [f"{one.st_size} {one.st_mtime_ns}" for one in stats]  # a mended image is another
        mark = fingerprint({"rows": rows._fingerprint, "images": marks})
        provenance = Provenance(source, "xm3600", rows=len(rows), fingerprint=mark)
        return EvaluationData(rows, "image", provenance=provenance), of_language
    rows = first_rows(load(source, config=config, split=split, separator=separator, image_column=image_column), limit)
    image = columns.column(rows, image_column, columns.IMAGE_COLUMNS, "image")
    if not languages:
        raise ValueError("give --languages, the columns with the captions of each language")
    absent = [language for language in languages if language not in rows.column_names]
    if absent:
        raise ValueError(
            f"the dataset has no columns {', '.join(absent)}; it has {', '.join(rows.column_names)}: --languages are "
            "the columns with the captions of each language"
        )
    of_language = {language: columns.captions(rows, language, optional=True) for language in languages}
    empty = [language for language, captions in of_language.items() if not any(captions)]
    if empty:
        raise ValueError(f"no row has a caption in {', '.join(empty)}")
    provenance = Provenance(source, None, config, split, len(rows), rows._fingerprint, {"image": image})
    return EvaluationData(columns.images(rows, image), image, provenance=provenance), of_language
