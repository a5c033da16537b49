"""One conversion, or the floor that only moves the bytes, in a process of its own; prints seconds and peak memory.

    python benchmarks/conversion_worker.py ours|floor SOURCE.npz TARGET

Time and memory leave the imports out.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


BLOCK = 1 << 22
# transformers loads these when they are first asked for, which would count as work
LAZY = (
    "transformers.models.bert.modeling_bert",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.siglip2.modeling_siglip2",
    "modeling_siglip_ext.conversion.__main__",
)


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
    try:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
    finally:
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

    status = main(["from-jax", source, target])
    if status:
        raise ValueError(f"from-jax ended with status {status}")


def run(kind: str, source: Path, target: Path) -> dict[str, float]:
    """`ours` or `floor` in a fresh process.

    Raises:
        RuntimeError: It failed; with the last line it said.
    """
    command = [sys.executable, __file__, kind, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("siglip-ext-convert:")]
        raise RuntimeError(said[-1] if said else done.stderr[-1000:])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    if kind == "ours":
        for module in LAZY:
            importlib.import_module(module)
    print(json.dumps(measure(lambda: {"floor": floor, "ours": ours}[kind](source, target))))
