"""Where a device's time goes in a step of training and in the loss, by kind of kernel and for the longest kernels."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from modeling_siglip_ext import sigmoid_loss

from . import losses
from .models import B16, BFLOAT16_STREAM, VARIANTS
from .setting import Bench, Figures, Item
from .steps import make_step


STEPS = 3
KINDS = {  # the first whose words a kernel's name has
    "loss": ("_sigmoid_", "_log_sum", "_softmax_kernel"),
    "fused by the compiler": ("triton_",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "aten::mm", "aten::addmm", "aten::bmm"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "layer norm": ("layer_norm", "layernorm", "gammabeta"),
    "copies and casts": ("memcpy", "memset", "copy", "_to_copy"),
    "elementwise and sums": ("elementwise", "reduce", "vectorized", "softmax", "index", "embedding"),
}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "others")


def kernel_times(bench: Bench, step: Callable[[int], object]) -> dict[str, float]:
    """Microseconds of each kernel over some steps; on a CPU of each operator."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_cuda else [])]) as profiler:
        for number in range(STEPS):
            step(number)
        bench.finish()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        on_device = "cuda" in str(event.device_type).lower()
        if on_device == bench.on_cuda and not event.is_user_annotation:
            time = event.self_device_time_total if bench.on_cuda else event.self_cpu_time_total
            spent[event.key] = spent.get(event.key, 0.0) + time
    return spent


def measure(bench: Bench, make: Callable[[Bench], Callable[[int], object]]) -> Figures:
    """Shares of the device's busy time, and how much of the time (without the profiler) it is busy."""
    step = make(bench)
    for number in range(STEPS):
        step(number)
    milliseconds = sum(bench.times(step, STEPS))
    spent = kernel_times(bench, step)
    total = sum(spent.values())
    kinds: dict[str, float] = {}
    for kernel, time in spent.items():
        kinds[kind_of(kernel)] = kinds.get(kind_of(kernel), 0.0) + time / total
    longest = sorted(spent.items(), key=lambda pair: -pair[1])[:25]
    return {
        "ms": milliseconds / STEPS,
        "busy": total / 1e3 / milliseconds,
        "kinds": dict(sorted(kinds.items(), key=lambda pair: -pair[1])),
        "kernels": {kernel[:160]: time / total for kernel, time in longest},
    }


def training_step(bench: Bench, variant: str) -> Callable[[int], object]:
    return make_step(bench, B16, 8 if bench.tiny else 256, variant)


def loss_step(bench: Bench) -> Callable[[int], object]:
    """65,536 pairs in bfloat16, by the implementation of the package's choice."""
    pairs, width = (64, losses.TINY_WIDTH) if bench.tiny else (65_536, losses.WIDTH)
    arguments = losses.inputs(pairs, width, torch.bfloat16, bench.device)
    return lambda _: losses.step(sigmoid_loss, arguments)


def profiles(bench: Bench) -> Iterator[Item]:
    for variant in (*VARIANTS[:2], f"{VARIANTS[1]}, {BFLOAT16_STREAM}"):
        yield Item(f"{B16}, {variant}", partial(measure, bench, partial(training_step, variant=variant)))
    yield Item("sigmoid loss, 65,536 pairs", partial(measure, bench, loss_step))
