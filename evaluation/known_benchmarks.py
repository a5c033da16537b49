"""Benchmarks by name: where each is on the Hub, which columns it has, how the papers prompt it.

Beside them what was published of SigLIP 2 by sequence length, to compare with.

The `clip-benchmark/wds_*` repositories are those that clip_benchmark evaluates from; local copies are given with
--dataset and keep the other settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Benchmark:
    """One known benchmark.

    Args:
        task: "zero-shot" (labels) or "retrieval" (captions).
        dataset: what `data.load` takes.
        split, train_split: which part is evaluated, and which the probes train on; None where there is none.
        image_column, label_column, caption_column: None where the usual names fit.
        class_names: "imagenet", or None for the dataset's own.
        templates: a name in `prompts/templates.json`, or None for the dataset's own.
        labels_file: whether the labels come in a file of their own (--labels).
        central_crop: whether images are resized to size / 0.875 and cropped, as big_vision does for ImageNet.
    """

    task: str
    dataset: str
    split: str | None = "test"
    train_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    class_names: str | None = None
    templates: str | None = "clip_paper"
    labels_file: bool = False
    central_crop: bool = False


NO_BENCHMARK = Benchmark("", "", split=None)
_WDS = "hf://datasets/clip-benchmark/wds_"
_IMAGENET = Benchmark(
    "zero-shot",
    "ILSVRC/imagenet-1k",
    "validation",
    "train",
    "image",
    "label",
    class_names="imagenet",
    central_crop=True,
)
BENCHMARKS = {
    "imagenet": _IMAGENET,
    # labels: real.json of google-research/reassessed-imagenet; rows without a label do not count
    "imagenet-real": replace(_IMAGENET, train_split=None, labels_file=True),
    "imagenet-v2": Benchmark(
        "zero-shot", f"{_WDS}imagenetv2", label_column="cls", class_names="imagenet", central_crop=True
    ),
    # 113 classes with names of their own, which the repository brings; ImageNet's through --label_map
    "objectnet": Benchmark("zero-shot", f"{_WDS}objectnet", label_column="cls"),
    "cifar100": Benchmark("zero-shot", "uoft-cs/cifar100", "test", "train", "img", "fine_label"),
    "pets": Benchmark("zero-shot", f"{_WDS}vtab-pets", train_split="train", label_column="cls"),
    "coco": Benchmark("retrieval", f"{_WDS}mscoco_captions", caption_column="txt", templates=None),
    "flickr30k": Benchmark("retrieval", f"{_WDS}flickr30k", caption_column="txt", templates=None),
}


# Figures in percent by the number of patches of an image: SigLIP 2 (arXiv 2502.14786). Of the models of one image size
# table 1, whose columns are:
TABLE_1 = (
    *((name, "accuracy@1") for name in ("imagenet", "imagenet-v2", "imagenet-real", "objectnet")),
    *((name, f"{way}_recall@1") for name in ("coco", "flickr30k") for way in ("text_to_image", "image_to_text")),
)
FIXED = {
    "SigLIP 2 B/16, fixed sizes": {
        196: (78.2, 71.4, 84.8, 73.6, 52.1, 68.9, 80.7, 93.0),
        256: (79.1, 72.5, 85.4, 74.5, 53.2, 69.7, 81.7, 94.4),
        576: (80.6, 73.8, 86.2, 77.1, 54.6, 71.4, 83.8, 94.9),
        1024: (81.2, 74.5, 86.7, 77.8, 55.2, 71.2, 84.5, 95.5),
    },
    "SigLIP 2 So400m/16, fixed sizes": {
        256: (83.4, 77.8, 87.7, 84.8, 55.4, 71.5, 84.4, 94.2),
        576: (84.1, 78.4, 88.1, 85.8, 56.0, 71.2, 85.3, 95.9),
        1024: (84.3, 79.1, 88.1, 86.2, 56.0, 71.3, 85.5, 95.4),
    },
}
# of the NaFlex models
NAFLEX = {
    ("imagenet", "accuracy@1"): {
        "SigLIP 2 B/16 NaFlex": {64: 71.2, 144: 76.2, 256: 78.5, 576: 80.0, 784: 80.2, 1024: 80.4},
        "SigLIP 2 So400m/16 NaFlex": {64: 78.5, 144: 81.8, 256: 83.5, 576: 84.1, 1024: 84.4},
    }
}


def published(benchmark: str | None, metric: str) -> dict[str, dict[int, float]]:
    """What was published of a metric on a benchmark, by model and number of patches; shares, as in results."""
    if (benchmark, metric) not in TABLE_1:
        return {}
    column = TABLE_1.index((benchmark, metric))
    fixed = {name: {length: row[column] for length, row in table.items()} for name, table in FIXED.items()}
    found: Mapping[str, Mapping[int, float]] = {**NAFLEX.get((benchmark, metric), {}), **fixed}
    return {name: {length: value / 100 for length, value in values.items()} for name, values in found.items()}


PROBES = ("few-shot", "linear-probe", "knn")


def known_to(task: str) -> list[str]:
    """The benchmarks of a command: probes take those with training rows, threshold those with captions."""
    if task in PROBES:
        return [name for name, one in BENCHMARKS.items() if one.train_split]
    task = "retrieval" if task == "threshold" else task
    return [name for name, one in BENCHMARKS.items() if one.task == task]


def find(name: str, task: str | None = None) -> Benchmark:
    """Raises ValueError for an unknown name, or one of another command."""
    known = list(BENCHMARKS) if task is None else known_to(task)
    if name not in known:
        to = f" to {task}" if task else ""
        raise ValueError(f"benchmark {name!r} is unknown{to}; known are {', '.join(known) or 'none'}")
    return BENCHMARKS[name]
