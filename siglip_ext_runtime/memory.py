"""What an exported file takes of memory: a process of its own runs it once on given inputs and prints its peak.

python -m siglip_ext_runtime.memory vision_model.onnx inputs.npz onnx
"""

import re
import sys
from pathlib import Path

import numpy as np

from .backends import BACKENDS


STATUS = Path("/proc/self/status")  # getrusage would count what the parent had


def peak_memory() -> int:
    """Bytes that this process had in memory at most, so far; on Linux."""
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert kilobytes is not None, STATUS
    return int(kilobytes[1]) * 1024


def main(file: str, inputs: str, backend: str) -> None:
    with np.load(inputs) as arrays:
        BACKENDS[backend](Path(file))(dict(arrays))
    print(peak_memory())


if __name__ == "__main__":
    main(*sys.argv[1:])
