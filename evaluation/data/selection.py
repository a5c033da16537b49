"""`select`: from the name of a dataset or benchmark to the rows, images, captions and labels that are evaluated."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets

from ..known_benchmarks import PROBES, Benchmark, find
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
    data = EvaluationData(
        images=columns.images(rows, image),
        image_column=image,
        provenance=Provenance(name, benchmark, config, split, len(rows), rows._fingerprint, {"image": image}),
    )
    if task in ("retrieval", "threshold"):
        caption = column("caption", caption_column, columns.CAPTION_COLUMNS)
        data = with_column(data, "caption", caption)
        data = replace(data, captions=columns.captions(rows, caption))
        if task == "threshold" and label_column:  # whether a pair belongs together
            matched = columns.column(rows, label_column, (), "label")
            data = replace(with_column(data, "label", matched), labels=columns.labels(rows, matched))
    elif task in PROBES:
        label = column("label", label_column, columns.LABEL_COLUMNS)
        names = columns.label_names(rows, label)
        data = replace(with_column(data, "label", label), labels=columns.labels(rows, label), label_names=names)
    elif task == "zero-shot":
        if known is not None and known.labels_file and not labels_file:
            raise ValueError(f"benchmark {benchmark} needs --labels, the file with its labels")
        label = None if labels_file else column("label", label_column, columns.LABEL_COLUMNS)
        here = str(source) if isinstance(source, (str, Path)) else None
        data = with_column(with_column(data, "label", label), "labels_file", labels_file)
        data = with_classes(data, rows, label, known, here, class_names, templates, labels_file, label_map)
    return data


def task_of(rows: datasets.Dataset, caption_column: str | None, labels: str | None) -> str:
    """What data are good for by themselves: retrieval where there are captions, otherwise classification."""
    usual = any(name in rows.column_names for name in columns.CAPTION_COLUMNS)
    return "retrieval" if caption_column or (usual and not labels) else "zero-shot"


def with_column(data: EvaluationData, what: str, name: str | None) -> EvaluationData:
    """The same data, saying which column was read."""
    assert data.provenance is not None
    provenance = replace(data.provenance, columns={**data.provenance.columns, what: name})
    return replace(data, provenance=provenance)


def with_classes(
    data: EvaluationData,
    rows: datasets.Dataset,
    column: str | None,
    benchmark: Benchmark | None,
    here: str | None,
    class_names: str | Sequence[str] | None,
    templates: str | Sequence[str] | None,
    labels_file: str | None,
    label_map: str | None,
) -> EvaluationData:
    """The same data with labels and classes; arguments as those of `select`."""
    assert data.provenance is not None
    assert data.image_column is not None
    wanted = class_names or (benchmark.class_names if benchmark else None)
    names, names_from = class_names_of(wanted, data.provenance.source, rows, column)
    own_names = columns.label_names(rows, column) if column else None
    if column is None:
        assert labels_file is not None
        labels = labels_from_file(labels_file, rows, data.image_column)
    else:  # a label map is what leads from the dataset's classes to those that the model chooses from
        labels = columns.labels(rows, column, None if label_map else names)
    filled, templates_from = templates_of(templates, here, benchmark)
    if label_map:
        content = json.loads(Path(label_map).read_text(encoding="utf-8"))
        labels, names = map_labels(content, labels, names, own_names)
    crop = benchmark is not None and benchmark.central_crop
    classes = Classes(names, filled, names_from, templates_from, crop)
    return replace(data, labels=labels, classes=classes, label_names=own_names)
