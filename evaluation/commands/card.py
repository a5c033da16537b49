"""`card`: results in the model card of a folder, if they are of the weights in that folder."""

import argparse
import re
from pathlib import Path

import torch
from transformers import AutoModel

from modeling_siglip_ext.command_line import Subparsers, add_command
from modeling_siglip_ext.embedding_store import weights_fingerprint
from modeling_siglip_ext.hub.card import add_results
from modeling_siglip_ext.hub.results import CLASSIFICATION, TASKS, Figure, Results, is_share
from siglip_ext_runtime import ExportedModel, is_exported

from ..data import Provenance
from ..data.sources import place_of
from ..known_benchmarks import BENCHMARKS
from ..results import Result, is_number, read_results


NAMES = {
    "imagenet": "ImageNet",
    "imagenet-real": "ImageNet-ReaL",
    "imagenet-v2": "ImageNet-v2",
    "objectnet": "ObjectNet",
    "cifar100": "CIFAR-100",
    "pets": "Oxford-IIIT Pets",
    "coco": "COCO",
    "flickr30k": "Flickr30k",
    "xm3600": "XM3600",
}


def register(commands: Subparsers) -> None:
    summary = "Add results to the model card of a folder; they must be of its weights."
    parser = add_command(commands, "card", run, summary=summary)
    parser.add_argument("results", nargs="+", help="result files, or folders with them")
    parser.add_argument("--model", required=True, help="model folder with a card")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that the model brings")


def run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: results go into the card of a model here, which is then published")
    results, prints = [], {}
    for path, result in read_results(arguments.results).items():
        if result.task not in TASKS:
            raise ValueError(f"{path}: results of {result.task} have no place in a card")
        if result.model is None or result.model.dtype is None or result.dataset is None:
            raise ValueError(f"{path} does not say which model was measured, and on what")
        dtype = result.model.dtype
        if dtype not in prints:
            prints[dtype] = print_of(folder, dtype, arguments.trust_remote_code)
        if result.model.weights != prints[dtype]:
            raise ValueError(f"{path} is of {result.model.name}, whose weights are not those in {folder}")
        results.append(as_results(result))
    print(add_results(folder, results))


def print_of(folder: Path, dtype: str, trust_remote_code: bool) -> str | None:
    """The fingerprint of the weights in a folder, loaded as they were for a result; of an exported model's files.

    None where they cannot be those of a result, whose precision is that of an exported model.
    """
    if is_exported(folder):
        return weights_fingerprint(ExportedModel(folder))
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        return None
    return weights_fingerprint(AutoModel.from_pretrained(folder, dtype=kind, trust_remote_code=trust_remote_code))


def as_results(result: Result) -> Results:
    """What a card says of one result, which must have a model and a dataset."""
    assert result.dataset is not None
    task_id, task_name = TASKS[result.task]
    plain = task_id == CLASSIFICATION or result.task == "zero-shot"
    figures = [
        Figure(
            f"{result.task} {key}" if plain else label(key),
            re.sub(r"\W+", "_", result.task) + f"_{key.replace(' ', '_')}",
            value,
            chance(result, key),
            percent=is_share(key),
        )
        for key, value in result.metrics.items()
        if is_number(value)
    ]
    name, config = dataset_id(result.dataset), result.dataset.config
    shown = NAMES.get(result.dataset.benchmark or "", name)
    return Results(
        dataset=f"{shown}, {config}" if config else shown,
        dataset_id=name,
        figures=tuple(figures),
        task=task_id,
        task_name=task_name,
        split=result.dataset.split,
        date=(result.date or "")[:10] or None,
        note=note(result),
        config=config,
    )


def label(key: str) -> str:
    return key.replace("image_to_text_recall", "image→text R").replace("text_to_image_recall", "text→image R")


def dataset_id(dataset: Provenance) -> str:
    """The dataset's name on the Hub; of a copy or a dataset here, which has none, a short name."""
    source = place_of(dataset.source)  # a signature in a URL is nobody's business
    if Path(source).exists() or "/" not in source:
        return dataset.benchmark or re.sub(r"[^\w.-]+", "-", Path(source).stem) or "data"
    benchmark = BENCHMARKS.get(dataset.benchmark or "")
    name = source.removeprefix("hf://datasets/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or (benchmark is not None and benchmark.labels_file):
        return dataset.benchmark or re.sub(r"[^\w.-]+", "-", Path(source).name)
    return name


def chance(result: Result, key: str) -> float | None:
    """What guessing gives, where that follows from the numbers of classes or images."""
    match = re.search(r"@(\d+)( at \d+ patches)?$", key)
    if match is None:
        return None
    k = int(match[1])
    if result.task == "zero-shot" and result.settings.get("labels") == "one a row":
        return min(1.0, k / result.settings["classes"])
    if result.task == "retrieval" and key.startswith("text_to_image") and result.counts.evaluated:
        return min(1.0, k / result.counts.evaluated)
    return None


def note(result: Result) -> str:
    """How it was measured, in a line."""
    counts = result.counts
    count = counts.evaluated or counts.test_rows or counts.pairs
    parts = [f"{count:,} {'images' if counts.pairs is None else 'pairs'}"] if count else []
    if counts.texts:
        parts.append(f"{counts.texts:,} texts")
    if counts.languages:
        parts.append(f"{len(counts.languages)} languages")
    if counts.unreadable:
        parts.append(f"{len(counts.unreadable)} images could not be read")
    shown = {key: value for key, value in result.settings.items() if value not in (None, False, [])}
    # a path of this machine says nothing elsewhere
    parts += [f"{key} {Path(v).name if isinstance(v, str) and Path(v).exists() else v}" for key, v in shown.items()]
    if result.model is not None:
        parts.append(f"weights in {result.model.dtype}")
    predicts = result.task in ("linear-probe", "knn", "threshold")  # by somebody else's rule
    return "; ".join(parts) + ("." if predicts else ". Equal scores count as misses.")
