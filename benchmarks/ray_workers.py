"""How much faster do two workers of Ray embed than one? And what does an image cost of a core, for the arithmetic?

    python benchmarks/ray_workers.py                   # some minutes on two idle cores
    python benchmarks/ray_workers.py --size tiny --images 64

B/16-224 with random weights, JPEGs of 640 x 480, one thread a worker. One worker and two run in turn; a run counts
from the moment that all its workers have their model to that when the first of them has no more to do. The bar: 1.7.
The CPU time of an image is counted in the workers, too: on a machine that others use it says more than the clock.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import ray.data
from report import RESULTS, machine, publish, store, table

from modeling_siglip_ext import SiglipExtImageProcessor
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.images import load_image
from modeling_siglip_ext.serving import BatchEmbedder
from serving import SIZES, photos, save_model


class Timed(BatchEmbedder):
    """Adds who embedded a row, from when to when, and with how many seconds of a core."""

    def __call__(self, batch):
        self.load()
        start, cpu = time.time(), time.process_time()
        found = super().__call__(batch)
        count = len(found["error"])
        about = {"start": start, "end": time.time(), "cpu": (time.process_time() - cpu) / count, "worker": os.getpid()}
        return {name: np.full(count, value) for name, value in about.items()}


def run(model: str, images: list[bytes], workers: int, batch_size: int) -> dict[str, float]:
    """Images a second and CPU seconds of an image."""
    options = {"model": model, "device": "cpu", "workers": 0, "batch_size": batch_size}
    rows = ray.data.from_items([{"image": image} for image in images], override_num_blocks=len(images) // batch_size)
    embedded = rows.map_batches(
        Timed, fn_constructor_kwargs=options, batch_size=batch_size, concurrency=workers, num_cpus=1
    )
    found = embedded.to_pandas()
    of_workers = found.groupby("worker")
    begin, end = of_workers["start"].min().max(), of_workers["end"].max().min()
    inside = found[(found["start"] >= begin) & (found["end"] <= end)]
    return {
        "workers": float(len(of_workers)),
        "images_per_second": len(inside) / (end - begin),
        "cpu_seconds": float(inside["cpu"].mean()),
    }


def prepare_seconds(images: list[bytes]) -> float:
    """CPU seconds of reading and preparing an image, without the tower."""
    processor = SiglipExtImageProcessor()
    start = time.process_time()
    for image in images:
        ImageBudget().prepare(processor, load_image(image))
    return (time.process_time() - start) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    images = photos(arguments.images)
    runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the paths of Ray's sockets may not be long
        save_model(Path(folder) / "model", arguments.size)
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        ray.data.DataContext.get_current().enable_progress_bars = False
        for _ in range(arguments.rounds):
            for workers, found in runs.items():
                found.append(run(str(Path(folder) / "model"), images, workers, arguments.batch_size))
        ray.shutdown()
    medians = {
        workers: {name: float(np.median([one[name] for one in found])) for name in found[0]}
        for workers, found in runs.items()
    }
    ratio = medians[2]["images_per_second"] / medians[1]["images_per_second"]
    prepared = prepare_seconds(images[:50])
    store(RESULTS / "ray_workers.json", {"runs": runs, "ratio": ratio, "prepare_cpu_seconds": prepared})
    rows = [
        [str(workers), f"{one['images_per_second']:.2f}", f"{1000 * one['cpu_seconds']:.0f}"]
        for workers, one in medians.items()
    ]
    lines = [
        f"{machine()}, {os.cpu_count()} cores, Ray {ray.__version__}; {arguments.images} images, {arguments.size}, "
        f"medians of {arguments.rounds} runs in turn.",
        "",
        *table(["workers:", "images/s:", "CPU ms an image:"], rows),
        "",
        f"Two workers: {ratio:.2f} times one (bar: 1.7).",
        f"Reading and preparing an image: {1000 * prepared:.1f} ms of a core.",
    ]
    publish(RESULTS / "ray_workers.md", lines)


if __name__ == "__main__":
    main()
