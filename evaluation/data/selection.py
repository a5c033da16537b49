"""`select`: from the name of a dataset or benchmark to the rows, images, captions and labels that are evaluated."""

from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers.utils import logging

from modeling_siglip_ext.inputs import unformatted

from ..known_benchmarks import NO_BENCHMARK, PROBES, find
from . import columns
from .classes import class_names_of, labels_from_file, map_labels, templates_of
from .evaluation_data import Classes, EvaluationData, Provenance
from .layouts import first_rows, load
from .text_files import read_json


logger = logging.get_logger(__name__)


def select(
    source: str | Path | datasets.Dataset | None = None,
    *,
    task: str | None = None,
    benchmark: str | None = None,
    config: str | None = None,
    split: str | None = None,
    separator: str | None = None,
    limit: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    class_names: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    labels_file: str | None = None,
    label_map: str | None = None,
) -> EvaluationData:
    """The data of one evaluation.

    Args:
        source: what `load` takes (a name on the Hub, a file, a folder), or rows of `datasets`; with `benchmark`, where
            a copy of it is.
        task: what it is for: "retrieval", "zero-shot", "threshold" or a probe. By default retrieval where there are
            captions, and zero-shot classification where there are none.
        benchmark: the name of a known one, which knows its columns, classes and templates.
        config, split: which part of the source.
        separator: of a CSV file, as in `load`.
        limit: only the first rows.
        image_column, caption_column, label_column: names; by default the usual ones.
        class_names: "imagenet", a file with one a line, or a list; by default the dataset's own.
        templates: a name of `prompts`, a file, or a list; by default the dataset's own, else "clip_paper".
        labels_file: JSON with the right classes of each row, in place of a label column.
        label_map: JSON that leads from the dataset's labels to the classes.

    Returns:
        The images (undecoded, so that a broken one spoils only itself) with what `task` needs of them.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: naming the column, split or benchmark that is missing, and what there is.
    """
    if task not in (None, "retrieval", "threshold", "zero-shot", *PROBES):
        raise ValueError(f"no task {task!r}; there are retrieval, threshold, zero-shot, {', '.join(PROBES)}")
    if source is None and not benchmark:
        raise ValueError("give --dataset or --benchmark")
    if labels_file and label_column:
        raise ValueError("labels_file and label_column both give the classes: leave one of them out")
    known = find(benchmark, task) if benchmark else NO_BENCHMARK
    settings = known if source is None else NO_BENCHMARK  # a copy has columns and splits of its own
    if isinstance(source, datasets.Dataset):
        name, rows = source.info.dataset_name or "dataset", unformatted(source)
    else:
        name, split = str(source or known.dataset), split or settings.split
        rows = load(name, config=config, split=split, separator=separator, image_column=image_column)
    rows = first_rows(rows, limit)

    def column(what: str, given: str | None, usual: Sequence[str]) -> str:
        return columns.column(rows, given or getattr(settings, f"{what}_column"), usual, what)

    image = column("image", image_column, columns.IMAGE_COLUMNS)
    task = task or known.task or task_of(rows, caption_column, label_column or labels_file)
    captions = labels = classes = names = None
    read: dict[str, str | None] = {"image": image}
    if task in ("retrieval", "threshold"):
        read["caption"] = column("caption", caption_column, columns.CAPTION_COLUMNS)
        captions = columns.captions(rows, read["caption"], optional=True)
        check_captions(captions, read["caption"])
        if task == "threshold" and label_column:  # whether a pair belongs together
            read["label"] = columns.column(rows, label_column, (), "label")
            labels = columns.matches(rows, read["label"])
    elif task in PROBES:
        read["label"] = label = column("label", label_column, columns.LABEL_COLUMNS)
        labels, names = columns.labels(rows, label), columns.label_names(rows, label)
    elif labels_file is None and known.labels_file:
        raise ValueError(f"benchmark {benchmark} needs --labels, the file with its labels")
    else:
        label = None if labels_file else column("label", label_column, columns.LABEL_COLUMNS)
        read |= {"label": label, "labels_file": labels_file}
        origin = None if isinstance(source, datasets.Dataset) else name
        class_list, names_from = class_names_of(class_names or known.class_names, origin, rows, label)
        names = columns.label_names(rows, label) if label else None
        if labels_file:
            labels = labels_from_file(labels_file, rows, image)
        else:  # a label map is what leads from the dataset's classes to those that the model chooses from
            labels = columns.labels(rows, str(label), None if label_map else class_list)
        prompts, templates_from = templates_of(templates, None if source is None else origin, known)
        if label_map:
            content = read_json(label_map)
            labels, class_list = map_labels(content, labels, class_list, names)
        classes = Classes(class_list, prompts, names_from, templates_from, known.central_crop)
    provenance = Provenance(name, benchmark, config, split, len(rows), rows._fingerprint, read)
    images = columns.images(rows, image)
    return EvaluationData(images, image, captions, labels, classes, names, provenance=provenance)


def check_captions(captions: Sequence[Sequence[str]], column: str) -> None:
    """Say which rows take no part.

    Raises:
        ValueError: more than half of the rows have no caption.
    """
    empty = [row for row, own in enumerate(captions) if not own]
    if len(empty) > len(captions) / 2:
        raise ValueError(f"{len(empty)} of {len(captions)} rows have no caption in {column!r}, e.g. row {empty[0]}")
    if empty:
        shown = ", ".join(map(str, empty[:5]))
        message = "%d of %d rows have no caption in %r and take no part, e.g. rows %s"
        logger.warning(message, len(empty), len(captions), column, shown)


def task_of(rows: datasets.Dataset, caption_column: str | None, labels: str | None) -> str:
    """What data are good for by themselves: retrieval where there are captions, otherwise classification."""
    usual = any(name in rows.column_names for name in columns.CAPTION_COLUMNS)
    return "retrieval" if caption_column or (usual and not labels) else "zero-shot"
