"""Steps of training on a device: pairs a second and share of the peak, the gradient cache, and where the time goes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.modeling_outputs import ModelOutput

from modeling_siglip_ext import SiglipExtImageProcessor, SiglipExtModel, sigmoid_loss
from modeling_siglip_ext.training.components.grad_cache import cached_backward
from modeling_siglip_ext.training.data.pixels import normalized

from .models import B16, SO400M_14, VARIANTS, compile_layers, forward_flops, make_batch, make_model
from .setting import Bench, Figures, Item, first_that_fits


BATCHES = {B16: (512, 256), SO400M_14: (128, 96, 64)}
CACHED_PAIRS, CHUNKS = 32_768, (512, 256)


def make_step(bench: Bench, name: str, pairs: int, variant: str) -> Callable[[int], None]:
    """bfloat16 autocast over float32 weights, the loss of the model's choice, fused AdamW."""
    model = make_model(bench, name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = make_batch(bench, name, pairs)
    if variant == "layers compiled":
        compile_layers(bench, model)
    run = bench.compiled(model) if variant == "compiled" else model

    def step(_: int) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = run(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rates(bench: Bench, name: str, pairs: int, found: Figures, passes: float = 3) -> Figures:
    """Pairs a second, and the work of the towers' forward and backward, what is computed twice counted once."""
    seconds = 1e-3 * found["ms"]
    flops = passes * forward_flops(name, bench.tiny) * pairs
    return {"batch": pairs, "pairs/s": pairs / seconds} | found | bench.shares(flops / seconds)


def measure_step(bench: Bench, name: str, variant: str) -> Figures:
    def run(pairs: int) -> Figures:
        if bench.on_cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        step = make_step(bench, name, pairs, variant)
        found = bench.measure(step, seconds=4, most=20)
        allocated = torch.cuda.max_memory_allocated(bench.device) if bench.on_cuda else None
        return rates(bench, name, pairs, found) | {"bytes": allocated}

    return first_that_fits(bench, (8,) if bench.tiny else BATCHES[name], run)


def measure_cache(bench: Bench, name: str, variant: str) -> Figures:
    """A step of many pairs: images as uint8 on the device, normalised chunk by chunk, and twice through the towers."""

    def run(size: int) -> Figures:
        model: SiglipExtModel = make_model(bench, name).train()
        if variant == "layers compiled":
            compile_layers(bench, model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        chunk, processor = make_batch(bench, name, size, torch.uint8), SiglipExtImageProcessor()

        def prepare(inputs: dict) -> dict:
            return inputs | {"pixel_values": normalized(inputs["pixel_values"], processor)}

        def forward(**inputs: torch.Tensor) -> ModelOutput:
            # around each forward, as accelerate has it
            with torch.autocast(bench.device.type, torch.bfloat16):
                return model(**inputs)

        def step(count: int) -> None:
            cached_backward(forward, model, [chunk] * count, sigmoid_loss, prepare=prepare)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        count = (4 * size if bench.tiny else CACHED_PAIRS) // size
        step(2)
        peak = bench.peak(lambda: step(count))
        found: Figures = {"ms": bench.times(lambda _: step(count), 1)[0], "runs": 1}
        return rates(bench, name, count * size, found) | {"chunk": size, "bytes": peak}

    return first_that_fits(bench, (4,) if bench.tiny else CHUNKS, run)


def training(bench: Bench) -> Iterator[Item]:
    for name in (B16, SO400M_14):
        for variant in VARIANTS[:2]:
            yield Item(f"{name}, {variant}", partial(measure_step, bench, name, variant))
    cached = VARIANTS[1]
    yield Item(f"{B16}, gradient cache, {cached}", partial(measure_cache, bench, B16, cached))
    for name in (B16, SO400M_14):  # compiling the whole takes a minute or two
        yield Item(f"{name}, {VARIANTS[2]}", partial(measure_step, bench, name, VARIANTS[2]))


# ---- where the time goes


KINDS = {  # the first whose words a kernel's name has
    "loss": ("_sigmoid_", "_log_sum", "_softmax_kernel"),
    "fused by the compiler": ("triton_",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "aten::mm", "aten::addmm", "aten::bmm"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "layer norm": ("layer_norm", "layernorm", "gammabeta"),
    "copies and casts": ("memcpy", "memset", "copy", "_to_copy"),
    "elementwise and sums": ("elementwise", "reduce", "vectorized", "cat", "softmax", "index", "embedding"),
}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "others")


def measure_profile(bench: Bench, name: str, variant: str) -> Figures:
    """Shares of the device's busy time over three steps: by kind, and of the longest kernels; and how busy it was."""
    pairs, steps = (8, 3) if bench.tiny else (256, 3)
    step = make_step(bench, name, pairs, variant)
    for _ in range(3):
        step(0)
    milliseconds = sum(bench.times(step, steps))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step(0)
        bench.finish()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.is_user_annotation or (bench.on_cuda and "cuda" not in str(event.device_type).lower()):
            continue
        time = event.self_device_time_total if bench.on_cuda else event.self_cpu_time_total
        spent[event.key] = spent.get(event.key, 0.0) + time
    total = sum(spent.values())
    kinds: dict[str, float] = {}
    for kernel, time in spent.items():
        kinds[kind_of(kernel)] = kinds.get(kind_of(kernel), 0.0) + time / total
    longest = sorted(spent.items(), key=lambda pair: -pair[1])[:25]
    return {
        "batch": pairs,
        "ms": milliseconds / steps,
        "busy": total / 1e3 / milliseconds,
        "kinds": dict(sorted(kinds.items(), key=lambda pair: -pair[1])),
        "kernels": {kernel[:120]: time / total for kernel, time in longest},
    }


def profiles(bench: Bench) -> Iterator[Item]:
    for variant in VARIANTS[:2]:
        yield Item(f"{B16}, {variant}", partial(measure_profile, bench, B16, variant))
