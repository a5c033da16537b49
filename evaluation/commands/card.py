"""Results of `siglip-ext-eval` in the model card of a folder, if they are of the weights in that folder."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from modeling_siglip_ext.embedding_store import weights_fingerprint
from modeling_siglip_ext.hub.card import add_results
from modeling_siglip_ext.hub.results import TASKS, Figure, Results, is_share

from ..known_benchmarks import BENCHMARKS
from ..results import is_number, result_files


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


def card(args: argparse.Namespace) -> None:
    """Add results to the model card of a folder; they must be of its weights."""
    folder = Path(args.model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: results go into the card of a model here, which is then published")
    results, prints = [], {}
    for path in result_files(args.results):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["task"] not in TASKS:
            raise ValueError(f"{path}: results of {result['task']} have no place in a card")
        dtype = result["model"]["dtype"]
        if dtype not in prints:
            model = AutoModel.from_pretrained(
                folder, dtype=getattr(torch, dtype), trust_remote_code=args.trust_remote_code
            )
            prints[dtype] = weights_fingerprint(model)
        if result["model"]["weights"] != prints[dtype]:
            raise ValueError(f"{path} is of {result['model']['name']}, whose weights are not those in {folder}")
        results.append(as_results(result))
    print(add_results(folder, results))


def as_results(result: dict[str, Any]) -> Results:
    """What a card says of one result file."""
    about, settings, task = result["dataset"], result.get("settings", {}), result["task"]
    task_id, task_name = TASKS[task]
    figures = [
        Figure(
            f"{task} {key}" if task_id == "image-classification" or task == "zero-shot" else label(key),
            re.sub(r"\W+", "_", task) + f"_{key}",
            value,
            chance(task, key, about, settings),
            percent=is_share(key),
        )
        for key, value in result["metrics"].items()
        if is_number(value)
    ]
    return Results(
        dataset=NAMES.get(about.get("benchmark"), dataset_id(about)),
        dataset_id=dataset_id(about),
        figures=tuple(figures),
        task=task_id,
        task_name=task_name,
        split=about.get("split"),
        date=result["date"][:10],
        note=note(result),
    )


def label(key: str) -> str:
    return key.replace("image_to_text_recall", "image→text R").replace("text_to_image_recall", "text→image R")


def dataset_id(about: dict[str, Any]) -> str:
    """The dataset's name on the Hub; of a copy or a dataset here, which has none, a short name."""
    source = about["source"]
    if Path(source).exists() or "/" not in source:
        return about.get("benchmark") or re.sub(r"[^\w.-]+", "-", Path(source).stem) or "data"
    benchmark = BENCHMARKS.get(about.get("benchmark"))
    name = source.removeprefix("hf://datasets/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or (benchmark is not None and benchmark.labels_file):
        return about.get("benchmark") or re.sub(r"[^\w.-]+", "-", Path(source).name)
    return name


def chance(task: str, key: str, about: dict[str, Any], settings: dict[str, Any]) -> float | None:
    """What guessing gives, where that follows from the numbers of classes or images."""
    found = re.search(r"@(\d+)$", key)
    if found is None:
        return None
    k = int(found[1])
    if task == "zero-shot" and settings.get("labels") == "one a row":
        return min(1.0, k / settings["classes"])
    if task == "retrieval" and key.startswith("text_to_image"):
        return min(1.0, k / about["evaluated"])
    return None


def note(result: dict[str, Any]) -> str:
    """How it was measured, in a line."""
    about, settings = result["dataset"], result.get("settings", {})
    count = about.get("evaluated") or about.get("test_rows") or about.get("pairs")
    parts = [f"{count:,} {'pairs' if 'pairs' in about else 'images'}"] if count else []
    if about.get("texts"):
        parts.append(f"{about['texts']:,} texts")
    if about.get("languages"):
        parts.append(f"{len(about['languages'])} languages")
    if about.get("unreadable"):
        parts.append(f"{len(about['unreadable'])} images could not be read")
    shown = {key: value for key, value in settings.items() if value not in (None, False, [])}
    # a path of this machine says nothing elsewhere
    parts += [f"{key} {Path(v).name if isinstance(v, str) and Path(v).exists() else v}" for key, v in shown.items()]
    parts.append(f"weights in {result['model']['dtype']}")
    return "; ".join(parts) + ". Equal scores count as misses."
