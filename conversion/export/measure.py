"""What a file costs on this machine: CPU time against the model in torch, and memory."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from modeling_siglip_ext.image_budget import collate
from modeling_siglip_ext.threads import one_thread
from siglip_ext_runtime.memory import STATUS

from .samples import Inputs
from .vectors import Embed


ROUNDS = 5


def cpu_time(embed: Embed, inputs: Inputs) -> float:
    """Seconds of all threads."""
    start = time.process_time()
    embed(inputs)
    return time.process_time() - start


def cpu_time_ratio(model: Embed, file: Embed, inputs: Inputs, rounds: int = ROUNDS) -> float:
    """How many times the CPU time of the file the model takes; medians of runs in turn, after one of each.

    Both should run in one thread: those that wait for others spend time on it.
    """
    with one_thread():
        model(inputs)
        file(inputs)
        pairs = [(cpu_time(model, inputs), cpu_time(file, inputs)) for _ in range(rounds)]
    ours, theirs = (median(times) for times in zip(*pairs))
    return ours / theirs


def peak_memory(path: Path, inputs: Inputs, backend: str = "onnx") -> int | None:
    """Bytes that a process takes at most which loads a file and runs it once; None where the system does not tell."""
    if not STATUS.is_file():
        return None
    with TemporaryDirectory() as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, **{name: tensor.numpy() for name, tensor in collate([inputs]).items()})
        command = [sys.executable, "-m", "siglip_ext_runtime.memory", str(path), str(arrays), backend]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout)
