"""What does a conversion cost? Time and memory of `from-jax`, against a floor that only moves the bytes.

    python benchmarks/conversion.py                 # the base model, 0.8 GB
    python benchmarks/conversion.py siglip2_g-opt16_256   # any name of the catalogue; this one is 7.5 GB

prints the table and writes benchmarks/results/conversion.md. Random weights of the real sizes stand for the released
files. The floor reads every array with numpy, transposes it, writes it, hashes the source, reads the result again and
compares it with the source. Both run in fresh processes, in turn; their times leave the imports out. The bars: at most
1.5 times the floor's time, and at most the largest tensor + 300 MB of anonymous memory above the idle imports.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


RESULTS = Path(__file__).parent / "results" / "conversion.md"
NAMES = ["webli_en_b16_224_63724782"]
BLOCK = 1 << 22


def anonymous_memory() -> int:
    """Bytes of this process that no file stands behind (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("no RssAnon in /proc/self/status")


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of the work, and the peak of its anonymous memory above what there was before, in bytes."""
    idle = peak = anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "bytes": peak - idle}


def transposed(array: np.ndarray) -> np.ndarray:
    matrix = array.reshape(len(array), -1) if array.ndim > 1 else array
    return np.ascontiguousarray(matrix.T)


def floor(source: str, target: str) -> None:
    with np.load(source) as arrays, open(target, "wb") as file:
        places = {}
        for name in arrays.files:
            values = transposed(arrays[name])
            places[name] = (file.tell(), values.shape, values.dtype)
            file.write(values.data)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256()
    with open(source, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    with np.load(source) as arrays:
        for name, (place, shape, dtype) in places.items():
            written = np.memmap(target, dtype, "r", place, shape)
            if not np.array_equal(written, transposed(arrays[name])):
                raise ValueError(f"{name} was not written as it was read")


def ours(source: str, target: str) -> None:
    from modeling_siglip_ext.conversion.__main__ import main

    if main(["from-jax", source, target]):
        raise ValueError("the conversion failed")


def worker(kind: str, source: str, target: str) -> None:
    if kind == "ours":
        import transformers.models.siglip.modeling_siglip  # noqa: F401 - loaded lazily, else counted as work

        import modeling_siglip_ext.conversion.__main__  # noqa: F401
    print(json.dumps(measure(lambda: {"floor": floor, "ours": ours}[kind](source, target))))


def write_random(name: str, path: Path) -> int:
    """A file of the catalogue with random weights; returns the bytes of its largest tensor."""
    import torch
    from transformers import AutoModel

    from modeling_siglip_ext.conversion.big_vision import rules
    from modeling_siglip_ext.conversion.catalogue import find
    from modeling_siglip_ext.conversion.name_map import array_shapes
    from modeling_siglip_ext.conversion.npz import NpzWriter

    config = find(name).config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    with NpzWriter(path) as writer:
        for key, shape in array_shapes(rules(config), shapes).items():
            rest = torch.Size(shape).numel()
            blocks = [noise[: min(len(noise), rest - start)] for start in range(0, rest, len(noise))]
            writer.write(f"params/{key}", shape, torch.float32, blocks)
    return 4 * max(torch.Size(shape).numel() for shape in shapes.values())


def run(kind: str, source: Path, folder: Path) -> dict[str, float]:
    target = folder / kind
    command = [sys.executable, __file__, "--worker", kind, str(source), str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    if kind == "floor":
        target.unlink()
    else:
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, rounds: int, folder: Path) -> str:
    source = folder / f"{name}.npz"
    largest = write_random(name, source)
    size = source.stat().st_size
    found = {"floor": [], "ours": []}
    for _ in range(rounds):
        for kind, runs in found.items():
            runs.append(run(kind, source, folder))
    source.unlink()
    seconds = {kind: statistics.median(one["seconds"] for one in runs) for kind, runs in found.items()}
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found["ours"], found["floor"]))
    memory = max(one["bytes"] for one in found["ours"])
    return (
        f"| {name} | {size / 1e9:.2f} | {seconds['ours']:.1f} | {seconds['floor']:.1f} | {ratio:.2f} | "
        f"{memory / 1e6:,.0f} | {largest / 1e6:,.0f} | {(memory - largest) / 1e6:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="with room for twice the file; the system's temporary folder unless given")
    arguments = parser.parse_args()
    lines = [
        "# Conversion of a big_vision checkpoint, against a floor that only moves the bytes",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; medians of {arguments.rounds} runs in "
        "turn; memory is anonymous, above the idle imports.",
        "",
        "| file | GB | ours, s | floor, s | ratio | ours, MB | largest tensor, MB | above it, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.names:
            lines.append(compare(name, arguments.rounds, Path(folder)))
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
