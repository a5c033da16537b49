"""Classes of zero-shot classification: their names, their prompts' templates, and labels in files of their own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from ..known_benchmarks import Benchmark
from ..prompts import imagenet_classes
from ..prompts import templates as known_templates
from .columns import file_names, label_names
from .text_files import lines_of, read_json, read_text


logger = logging.get_logger(__name__)


def read_lines_or_json(path: str) -> list[str]:
    """The lines of a text file that are not empty, or the strings of a JSON list."""
    if path.endswith(".json"):
        lines = read_json(path)
    else:
        every = lines_of(read_text(path))
        lines = [line for line in every if line.strip()]
        if len(lines) < len(every):
            logger.warning("%s: %d of %d lines are empty and left out", path, len(every) - len(lines), len(every))
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path} must hold a list of strings")
    return lines


def lines_beside(source: str, name: str) -> list[str] | None:
    """The lines of a file at the top of a local dataset, such as clip_benchmark's `classnames.txt`."""
    path = Path(source) / name
    return [line.strip() for line in lines_of(read_text(path))] if path.is_file() else None


def class_names_of(
    wanted: str | Sequence[str] | None, source: str | None, rows: datasets.Dataset, column: str | None
) -> tuple[list[str], str]:
    """Class names and where they are from.

    Args:
        wanted: the names, "imagenet", or a file with one a line; None for those that the dataset brings.
        source: where the dataset is, which may have a `classnames.txt` there.
        column: its label column, which may know them.

    Raises:
        ValueError: there are none.
    """
    if wanted == "imagenet":
        return imagenet_classes(), "imagenet"
    if isinstance(wanted, str):
        return read_lines_or_json(wanted), wanted
    if wanted is not None:
        return list(wanted), "given"
    if source and source.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        text = HfFileSystem().read_text(f"{source.removeprefix('hf://')}/classnames.txt", encoding="utf-8")
        beside = [line.strip() for line in lines_of(str(text))]
    else:
        beside = lines_beside(source, "classnames.txt") if source else None
    names = beside or (label_names(rows, column) if column else None)
    if names is None:
        raise ValueError("the dataset has no class names: give --class_names, a file with one a line, or imagenet")
    return [name.replace("_", " ") for name in names], "classnames.txt" if beside else "the dataset"


def templates_of(
    wanted: str | Sequence[str] | None, source: str | None, benchmark: Benchmark
) -> tuple[list[str], str]:
    """Prompt templates and where they are from.

    Args:
        wanted: the templates, a name in `prompts/templates.json`, or a file with one a line; None for those of the
            dataset, else of the benchmark, else "clip_paper".
        source: a dataset here, which may bring its own.
        benchmark: whose settings hold.
    """
    if wanted is not None and not isinstance(wanted, str):
        return list(wanted), "given"
    if wanted and Path(wanted).is_file():
        return read_lines_or_json(wanted), wanted
    beside = lines_beside(source, "zeroshot_classification_templates.txt") if source else None
    if wanted is None and beside and benchmark.class_names != "imagenet":
        return [template.replace("{c}", "{}") for template in beside], "zeroshot_classification_templates.txt"
    name = wanted or benchmark.templates or "clip_paper"
    return known_templates(name), name


def labels_from_file(path: str, rows: datasets.Dataset, column: str) -> list[list[int]]:
    """Labels from a JSON file: a list, one entry a row or - as ImageNet-ReaL's - one a number in the file names; or a
    mapping of file names. An entry is a class index or a list of them, which may be empty.
    """
    content = read_json(path)
    if isinstance(content, dict):
        entries = [content.get(name) for name in file_names(rows, column)]
        if None in entries:
            raise ValueError(f"{path} has no labels for row {entries.index(None)}")
    else:
        matches = [re.match(r"ILSVRC2012_val_(\d{8})", name or "") for name in file_names(rows, column)]
        numbers = [int(match[1]) for match in matches if match is not None]
        if len(numbers) == len(rows):
            entries = [content[number - 1] for number in numbers]
        elif len(content) == len(rows):
            entries = content
        else:
            raise ValueError(f"{path} has {len(content)} labels for {len(rows)} rows without ImageNet's file names")
    return [entry if isinstance(entry, list) else [entry] for entry in entries]


def map_labels(
    label_map: Mapping[str, Any],
    labels: Sequence[Sequence[int]],
    names: Sequence[str],
    label_names: Sequence[str] | None = None,
) -> tuple[list[list[int]], list[str]]:
    """Labels of a dataset as classes of another, as ObjectNet's as ImageNet's.

    Args:
        label_map: the dataset's label to one class or several, all by index or name. Labels that it lacks do not
            count.
        labels: the dataset's labels.
        names: all classes.
        label_names: the dataset's names of its labels, where it has any.

    Returns:
        New labels, and the names of the classes that the map mentions: only among these a model chooses.
    """
    place = {name: index for index, name in enumerate(names)}
    number = {name: index for index, name in enumerate(label_names or ())}
    targets: dict[int, list[int]] = {}
    for label, value in label_map.items():
        wanted = value if isinstance(value, list) else [value]
        unknown = [one for one in wanted if (one not in place if isinstance(one, str) else not 0 <= one < len(names))]
        if unknown:
            raise ValueError(f"the label map sends {label!r} to {unknown[0]!r}, which is no class")
        if label not in number and not label.isdecimal():
            raise ValueError(f"the label map's {label!r} is neither a number nor one of the data set's labels")
        targets[number[label] if label in number else int(label)] = [
            place[one] if isinstance(one, str) else one for one in wanted
        ]
    used = sorted({one for wanted in targets.values() for one in wanted})
    new = {old: index for index, old in enumerate(used)}
    mapped = [[new[one] for label in own for one in targets.get(label, [])] for own in labels]
    return mapped, [names[old] for old in used]
