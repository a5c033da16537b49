"""Steps of training on a device: pairs a second and share of the peak, and the gradient cache."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from transformers.modeling_outputs import ModelOutput

from modeling_siglip_ext import SiglipExtImageProcessor, SiglipExtModel, sigmoid_loss
from modeling_siglip_ext.training.components.grad_cache import cached_backward
from modeling_siglip_ext.training.data.pixels import normalized

from .models import B16, SO400M_14, TRIALS, VARIANTS, arrange, forward_flops, make_batch, make_model
from .setting import Bench, Figures, Item, first_that_fits


BATCHES = {B16: (512, 256), SO400M_14: (128, 96, 64)}
CACHED_PAIRS, CHUNKS = 32_768, (512, 256)


def make_step(bench: Bench, name: str, pairs: int, variant: str) -> Callable[[int], None]:
    """bfloat16 autocast over float32 weights, the loss of the model's choice, fused AdamW."""
    model = arrange(bench, make_model(bench, name).train(), variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batch = make_batch(bench, name, pairs)
    run = bench.compiled(model) if variant == "compiled" else model

    def step(_: int) -> None:
        torch.compiler.cudagraph_mark_step_begin()
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
        arrange(bench, model, variant)
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
    for variant in (f"{VARIANTS[1]}, {trial}" for trial in TRIALS):
        yield Item(f"{B16}, {variant}", partial(measure_step, bench, B16, variant))
    cached = VARIANTS[1]
    yield Item(f"{B16}, gradient cache, {cached}", partial(measure_cache, bench, B16, cached))
    for name in (B16, SO400M_14):  # compiling the whole takes a minute or two
        yield Item(f"{name}, {VARIANTS[2]}", partial(measure_step, bench, name, VARIANTS[2]))
