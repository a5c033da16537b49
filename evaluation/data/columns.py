"""Which column of a dataset says what, and its values as images, labels, captions and class names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import datasets

from modeling_siglip_ext.inputs import undecoded

from .text_files import lines_of


# Names of files and addresses last: beside an image they say where it is from.
IMAGE_COLUMNS = (
    *("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_path", "filepath", "file_path", "file_name"),
    *("filename", "image_file", "path", "file", "image_url", "url"),
)
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "npy")
CAPTION_COLUMNS = (
    *("caption", "captions", "sentences", "text", "texts", "txt", "raw"),
    *("title", "description", "alt_text", "prompt"),
)
# WebDataset knows the members of a sample by their suffixes; rows of a shard have them under these names.
MEMBERS = {"image": ("jpg", "jpeg", "png", "webp"), "caption": ("txt",)}


def usual(present: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of the usual names that a dataset has, in any case, as the dataset writes it."""
    spelled = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(list(present))}
    return next((spelled[name] for name in names if name in spelled), None)


def member(given: str, what: str, present: Iterable[str] = ()) -> str:
    """The column that a name stands for in rows of a shard: `jpg` is `image` and `txt` is `caption`."""
    return what if given in MEMBERS[what] and given not in present else given


def column(dataset: datasets.Dataset, given: str | None, names: Sequence[str], what: str) -> str:
    """The name of a column: the one given, or the first of the usual ones.

    Raises:
        ValueError: there is none; the message lists the columns that there are.
    """
    present = dataset.column_names
    if given and what in MEMBERS and "__key__" in present:
        given = member(given, what, present)
    found = usual(present, names) if given is None else given if given in present else None
    if found is None:
        wanted = " or ".join(map(repr, [given] if given else names))
        raise ValueError(
            f"the dataset has no {what} column {wanted}; it has {', '.join(present)}: name one with --{what}_column"
        )
    return found


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
    # of equal names the first, as everywhere
    place = {plain(known_name): index for index, known_name in reversed(list(enumerate(known)))}
    result = []
    for row, value in enumerate(dataset.select_columns([name])[:][name]):
        values = value if isinstance(value, list) else [value]
        values = [place.get(plain(one), one) if isinstance(one, str) else one for one in values]
        if not all(isinstance(one, (int, bool)) for one in values):
            raise ValueError(f"row {row}: {name} {value!r:.100} is neither a class index nor one of the classes")
        result.append([int(one) for one in values])
    return result


def matches(dataset: datasets.Dataset, name: str) -> list[list[int]]:
    """Whether each row's image and text belong together, [1] or [0].

    Raises:
        ValueError: a value that says neither; words are not guessed at, as "match" and "mismatch" would be by order.
    """
    known = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}
    values = dataset.select_columns([name])[:][name]
    found = [known.get(str(value).strip().lower()) for value in values]
    if None in found:
        row = found.index(None)
        raise ValueError(f"row {row}: {name} {values[row]!r:.100} is neither 1, for a matched pair, nor 0")
    return [[one] for one in found if one is not None]


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
        texts = lines_of(value) if isinstance(value, str) else [] if value is None and optional else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"row {row}: {name} is {value!r:.100}, neither a caption nor a list of captions")
        texts = [text for text in texts if text.strip()]
        if not texts and not optional:
            raise ValueError(f"row {row} has no caption in {name!r}")
        result.append(texts)
    return result


def file_names(dataset: datasets.Dataset, name: str) -> list[str | None]:
    """The file name of each image where the dataset knows it."""
    if "__key__" in dataset.column_names:
        return list(dataset["__key__"])
    values = (row[name] for row in cast(Iterable[Any], images(dataset, name)))
    paths = [value.get("path") if isinstance(value, Mapping) else value for value in values]
    return [os.path.basename(path) if isinstance(path, str) else None for path in paths]
