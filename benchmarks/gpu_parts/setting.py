"""What every measurement on a device needs: a clock of the device, its peak of memory, a name for the card."""

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn


Figures = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One thing to measure.

    Args:
        name: Among those of its section.
        group: Of items that grow; where one fails, in whatever way, the later ones of its group are left out.
    """

    name: str
    run: Callable[[], Figures]
    group: str = ""


@dataclass(frozen=True)
class Bench:
    """Where and how things are measured.

    Args:
        device: CUDA, or a CPU to try the scripts on.
        tiny: Sizes that a CPU takes seconds for; nothing is compiled in earnest.
        ceilings: What the device reached in the section "ceilings", if that ran: "TFLOP/s" and "GB/s".
    """

    device: torch.device
    tiny: bool
    ceilings: dict[str, float]

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def finish(self) -> None:
        """Wait for what the device was given to do."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give memory back that nothing uses any more; not to be called while an exception holds on to its frames."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # compiled code may hold on to a model, and counts towards the most variants
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def times(self, run: Callable[[int], object], count: int) -> list[float]:
        """Milliseconds of each of `count` runs, by the device's own clock and without waiting between them."""
        if not self.on_cuda:
            marks = [time.perf_counter()]
            for number in range(count):
                run(number)
                marks.append(time.perf_counter())
            return [1e3 * (end - start) for start, end in pairwise(marks)]
        self.finish()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for number, event in enumerate(events[1:]):
            run(number)
            event.record()
        self.finish()
        return [start.elapsed_time(end) for start, end in pairwise(events)]

    def measure(
        self, run: Callable[[int], object], seconds: float = 1.0, most: int = 50, warm: bool = False
    ) -> Figures:
        """Median milliseconds of `run(number)` over as many runs as fit into `seconds`, three at least.

        What takes longer than `seconds` runs once, after a run to warm up, in which kernels are chosen and compiled;
        that one is left out where it is `warm` already.
        """
        if not warm:
            self.times(run, 1)
        found = self.times(run, 1)
        seconds = 0.02 if self.tiny else seconds
        if found[0] < 1e3 * seconds:
            found = self.times(run, max(3, min(most, int(1e3 * seconds / max(found[0], 1e-3)))))
        return {"ms": statistics.median(found), "least_ms": min(found), "most_ms": max(found), "runs": len(found)}

    def peak(self, run: Callable[[], object]) -> int | None:
        """Bytes by which allocated memory grows while something runs, at their peak; None on a CPU."""
        if not self.on_cuda:
            run()
            return None
        self.finish()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.finish()
        return torch.cuda.max_memory_allocated(self.device) - before

    def compiled(self, module: nn.Module) -> Callable:
        return torch.compile(module, dynamic=False, backend="eager" if self.tiny else "inductor")

    def shares(self, flops_a_second: float) -> Figures:
        """TFLOP/s, and as shares of what the device reached with one large product and of what its maker states."""
        rate, reached = flops_a_second / 1e12, self.ceilings.get("TFLOP/s")
        found: Figures = {"TFLOP/s": rate, "of_nominal": rate / NOMINAL_TFLOPS}
        return found | ({"of_reached": rate / reached} if reached else {})


# H100 SXM, bfloat16 without sparsity
NOMINAL_TFLOPS = 989


def l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def sets_beyond_cache(bench: Bench, size: int, most: int = 8) -> int:
    """How many input sets of `size` bytes to take in turn, so that none is still in the second-level cache."""
    cache = l2_bytes(bench.device)
    return 1 if size > 2 * cache else min(most, 2 * cache // max(size, 1) + 2)


def machine(device: torch.device) -> str:
    """The card with its driver, or the processor; Python, torch, Triton and transformers."""
    from transformers import __version__ as transformers

    words = [platform.processor() or platform.machine()]
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        words = [torch.cuda.get_device_name(device), f"driver {found[0] if found else 'unknown'}"]
    words.append(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    if "triton" in sys.modules or device.type == "cuda":
        import triton

        words.append(f"triton {triton.__version__}")
    return ", ".join([*words, f"transformers {transformers}"])


def first_that_fits(bench: Bench, sizes: tuple[int, ...], run: Callable[[int], Figures]) -> Figures:
    """What `run` finds with the first of the sizes, largest first, for which memory suffices.

    Raises:
        torch.OutOfMemoryError: It suffices for none.
    """
    for size in sizes:
        try:
            return run(size)
        except torch.OutOfMemoryError:
            pass
        bench.free()
    raise torch.OutOfMemoryError(f"also with {sizes[-1]}")
