"""Benchmarks by name: where each is on the Hub, which columns it has, how the papers prompt it.

The `clip-benchmark/wds_*` repositories are those that clip_benchmark evaluates from; local copies are given with
--dataset and keep the other settings.
"""

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
