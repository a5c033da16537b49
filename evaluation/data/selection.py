"""`select`: from the name of a dataset or benchmark to the rows, images, captions and labels that are evaluated."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets

from ..known_benchmarks import PROBES, find
from . import columns
from .classes import class_names_of, labels_from_file, map_labels, templates_of
from .evaluation_data import Classes, EvaluationData, Provenance
from .layouts import load


def select(
    source: str | Path | datasets.Dataset | None = None,
    *,
    task: str | None = None,
    benchmark: str | None = None,
    config: str | None = None,
    split: str | None = None,
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
    known = find(benchmark, task) if benchmark else None
    if source is None and known is None:
        raise ValueError("give --dataset or --benchmark")
    settings = known if source is None else None  # a copy has columns and splits of its own
    if isinstance(source, datasets.Dataset):
        name, rows = source.info.dataset_name or "dataset", source
    else:
        name = str(source) if source is not None else known.dataset if known is not None else ""
        split = split or (settings.split if settings else None)
        rows = load(name, config=config, split=split)
    if limit:
        rows = rows.select(range(min(limit, len(rows))))

    def column(what: str, given: str | None, usual: Sequence[str]) -> str:
        given = given or (getattr(settings, f"{what}_column") if settings else None)
        return columns.column(rows, given, usual, what)

    image = column("image", image_column, columns.IMAGE_COLUMNS)
    if task is None:
        task = known.task if known else task_of(rows, caption_column, label_column or labels_file)
    captions = labels = classes = names = None
    read: dict[str, str | None] = {"image": image}
    if task in ("retrieval", "threshold"):
        read["caption"] = column("caption", caption_column, columns.CAPTION_COLUMNS)
        captions = columns.captions(rows, read["caption"])
        if task == "threshold" and label_column:  # whether a pair belongs together
            read["label"] = columns.column(rows, label_column, (), "label")
            labels = columns.labels(rows, read["label"])
    elif task in PROBES:
        read["label"] = label = column("label", label_column, columns.LABEL_COLUMNS)
        labels, names = columns.labels(rows, label), columns.label_names(rows, label)
    elif labels_file is None and known is not None and known.labels_file:
        raise ValueError(f"benchmark {benchmark} needs --labels, the file with its labels")
    else:
        label = None if labels_file else column("label", label_column, columns.LABEL_COLUMNS)
        read |= {"label": label, "labels_file": labels_file}
        wanted = class_names or (known.class_names if known else None)
        origin = None if isinstance(source, datasets.Dataset) else name
        class_list, names_from = class_names_of(wanted, origin, rows, label)
        names = columns.label_names(rows, label) if label else None
        if labels_file:
            labels = labels_from_file(labels_file, rows, image)
        else:  # a label map is what leads from the dataset's classes to those that the model chooses from
            labels = columns.labels(rows, str(label), None if label_map else class_list)
        prompts, templates_from = templates_of(templates, None if source is None else origin, known)
        if label_map:
            content = json.loads(Path(label_map).read_text(encoding="utf-8"))
            labels, class_list = map_labels(content, labels, class_list, names)
        classes = Classes(class_list, prompts, names_from, templates_from, known is not None and known.central_crop)
    provenance = Provenance(name, benchmark, config, split, len(rows), rows._fingerprint, read)
    images = columns.images(rows, image)
    return EvaluationData(images, image, captions, labels, classes, names, provenance=provenance)


def task_of(rows: datasets.Dataset, caption_column: str | None, labels: str | None) -> str:
    """What data are good for by themselves: retrieval where there are captions, otherwise classification."""
    usual = any(name in rows.column_names for name in columns.CAPTION_COLUMNS)
    return "retrieval" if caption_column or (usual and not labels) else "zero-shot"
