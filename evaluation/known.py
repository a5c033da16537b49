"""Benchmarks by name: where each is on the Hub, which columns it has, how the papers prompt it.

The `clip-benchmark/wds_*` repositories are those that clip_benchmark evaluates from; local copies are given with
--dataset and keep the other settings.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One known benchmark.

    Args:
        task: the command it belongs to.
        dataset: what `data.load` takes.
        split: which part is evaluated.
        image_column, label_column, caption_column: None where the usual names fit.
        class_names: "imagenet", or None for the dataset's own.
        templates: a name in `prompts/templates.json`, or None for the dataset's own.
        labels_file: whether the labels come in a file of their own (--labels).
        central_crop: whether images are resized to size / 0.875 and cropped, as big_vision does for ImageNet.
    """

    task: str
    dataset: str
    split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    class_names: str | None = None
    templates: str | None = "clip_paper"
    labels_file: bool = False
    central_crop: bool = False


_WDS = "hf://datasets/clip-benchmark/wds_"
BENCHMARKS = {
    "imagenet": Benchmark(
        "zero-shot", "ILSVRC/imagenet-1k", "validation", "image", "label", class_names="imagenet", central_crop=True
    ),
    # labels: real.json of google-research/reassessed-imagenet; rows without a label do not count
    "imagenet-real": Benchmark(
        "zero-shot",
        "ILSVRC/imagenet-1k",
        "validation",
        "image",
        "label",
        class_names="imagenet",
        labels_file=True,
        central_crop=True,
    ),
    "imagenet-v2": Benchmark(
        "zero-shot", f"{_WDS}imagenetv2", label_column="cls", class_names="imagenet", central_crop=True
    ),
    # 113 classes with names of their own, which the repository brings; ImageNet's through --label_map
    "objectnet": Benchmark("zero-shot", f"{_WDS}objectnet", label_column="cls"),
    "cifar100": Benchmark("zero-shot", "uoft-cs/cifar100", "test", "img", "fine_label"),
    "pets": Benchmark("zero-shot", f"{_WDS}vtab-pets", label_column="cls"),
    "coco": Benchmark("retrieval", f"{_WDS}mscoco_captions", caption_column="txt", templates=None),
    "flickr30k": Benchmark("retrieval", f"{_WDS}flickr30k", caption_column="txt", templates=None),
}


def find(name: str, task: str) -> Benchmark:
    """Raises ValueError for an unknown name, or one of another command."""
    known = [key for key, benchmark in BENCHMARKS.items() if benchmark.task == task]
    if name not in known:
        raise ValueError(f"benchmark {name!r} is unknown to {task}; known are {', '.join(known) or 'none'}")
    return BENCHMARKS[name]
