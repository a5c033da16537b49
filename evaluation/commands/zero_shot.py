"""`zero-shot`: classification by class names."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_siglip_ext.command_line import Subparsers, Switch, refuse_unused
from modeling_siglip_ext.image_budget import is_naflex

from ..data import EvaluationData
from ..results import Result
from ..session import crop_centre
from .arguments import evaluation_command, open_session, result_path, select_data
from .lengths import by_length, draw


def register(commands: Subparsers) -> None:
    summary = "Classification by class names: accuracy, and mean per-class recall where every image has one label."
    data, own = evaluation_command(commands, "zero-shot", run, summary)
    data.add_argument("--label_column", metavar="NAME", help="column with classes: numbers, or names")
    data.add_argument(
        "--labels", metavar="FILE", help="JSON: the right classes of each row, any number (ImageNet-ReaL)"
    )
    data.add_argument(
        "--label_map", metavar="FILE", help="JSON: label to class or classes, by number or name (ObjectNet)"
    )
    own.add_argument(
        "--class_names", help="file with one name a line, JSON list, or imagenet; otherwise the data set's own"
    )
    own.add_argument(
        "--templates",
        help="clip_paper (unless the data set has its own), clip_best, none, or a file with {} in each line",
    )
    own.add_argument(
        "--canonicalize",
        action=Switch,
        default=True,
        help="lower-case prompts without punctuation, as big_vision does (default: yes)",
    )
    own.add_argument(
        "--central_crop",
        action=Switch,
        help="resize images to size / 0.875 and crop (default: for the ImageNet benchmarks, but not with NaFlex)",
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.labels:
        refuse_unused(arguments, ["label_column"], "with --labels")
    data = select_data(
        arguments,
        class_names=arguments.class_names,
        templates=arguments.templates,
        labels_file=arguments.labels,
        label_map=arguments.label_map,
    )
    assert data.classes is not None
    session = open_session(arguments)
    images = session.processor.image_processor
    crop = arguments.central_crop
    if crop is None:  # NaFlex models take images whole
        crop = data.classes.central_crop and not is_naflex(images)
    if crop:
        crop_centre(images)
    sessions = session.by_length(arguments.lengths)
    options: dict[str, Any] = {"canonicalize": arguments.canonicalize}
    if session.first:
        options["class_embeds"] = session.embed_classes(data.classes, canonicalize=arguments.canonicalize)
    results = {}
    for length, one in sessions.items():
        embeds, errors = one.embed_images(data)
        if session.first:
            results[length] = one.evaluate(data, image_embeds=embeds, unreadable=errors, **options)
    if not session.first:
        return
    path = result_path(arguments, ".png")
    result = next(iter(results.values()))
    if len(results) > 1:
        result = by_length(results)
        draw(path, results, {"accuracy@1": "zero-shot accuracy@1"})
    elif result.settings["labels"] == "one a row":
        draw_confusion(path, data, result)
    settings = {**result.settings, "central_crop": crop, "label_map": arguments.label_map}
    one.finish(replace(result, settings=settings), result_path(arguments))


def draw_confusion(path: Path, data: EvaluationData, result: Result) -> None:
    """The picture of which classes went to which."""
    from ..pictures.charts import confusion_matrix

    assert data.classes is not None
    assert data.labels is not None
    assert data.provenance is not None
    assert result.predictions is not None
    pairs = [(own[0], chosen) for own, chosen in zip(data.labels, result.predictions) if chosen >= 0]
    confusion_matrix(
        path,
        [right for right, _ in pairs],
        [chosen for _, chosen in pairs],
        data.classes.names,
        title=f"{data.provenance.name}: share of each class's images",
    )
