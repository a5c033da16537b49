"""The towers alone on a device: images and texts a second, and NaFlex packed against padded as stock pads it."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from naflex import RUNS, mixed_grids, naflex_inputs, tower

from .models import B16, SO400M_14, TINY, VARIANTS, arrange, forward_flops, make_batch, make_model
from .setting import Bench, Figures, Item, first_that_fits


CEILING_SIZE = 8192
IMAGE_BATCHES, TEXT_BATCHES = (1024, 512, 256), (4096, 1024)


def measure_copy(bench: Bench) -> Figures:
    """From one buffer to another; bytes read and written both count."""
    size = 2**20 if bench.tiny else 2**32
    source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    found = bench.measure(lambda _: target.copy_(source))
    return found | {"GB/s": 2 * size / 1e6 / found["ms"]}


def measure_product(bench: Bench, dtype: torch.dtype) -> Figures:
    """One square product, of random numbers as zeros are faster."""
    size = 256 if bench.tiny else CEILING_SIZE
    one, other = (torch.randn(size, size, dtype=dtype, device=bench.device) for _ in range(2))
    found = bench.measure(lambda _: one @ other)
    return found | {"TFLOP/s": 2 * size**3 / 1e9 / found["ms"]}


def ceilings(bench: Bench) -> Iterator[Item]:
    yield Item("copy", partial(measure_copy, bench))
    yield Item("bfloat16 product", partial(measure_product, bench, torch.bfloat16))
    yield Item("float32 product", partial(measure_product, bench, torch.float32))


# ---- inference


def measure_inference(bench: Bench, name: str, part: str, variant: str) -> Figures:
    """Embeddings of one tower in bfloat16, from inputs on the device."""

    def run(count: int) -> Figures:
        model = arrange(bench, make_model(bench, name).eval().to(torch.bfloat16), variant)
        inputs = make_batch(bench, name, count, torch.bfloat16)
        module = model.vision_model if part == "image" else model.text_model
        key = "pixel_values" if part == "image" else "input_ids"
        call: Callable = bench.compiled(module) if variant == "compiled" else module

        def forward(_: int) -> None:
            with torch.no_grad():
                call(**{key: inputs[key]})

        found = bench.measure(forward, seconds=2)
        rate = count / (1e-3 * found["ms"])
        found |= {"batch": count, f"{part}s/s": rate}
        return found | bench.shares(rate * forward_flops(name, bench.tiny, part))

    sizes = IMAGE_BATCHES if part == "image" else TEXT_BATCHES
    return first_that_fits(bench, (8,) if bench.tiny else sizes, run)


def inference(bench: Bench) -> Iterator[Item]:
    pairs = ((B16, "image"), (B16, "text"), (SO400M_14, "image"))
    quick, whole = itertools.product(pairs, VARIANTS[:2]), itertools.product(pairs, VARIANTS[2:])
    for (name, part), variant in (*quick, *whole):  # compiling the whole takes a minute
        yield Item(f"{name}, {part} tower, {variant}", partial(measure_inference, bench, name, part, variant))


# ---- NaFlex


def measure_naflex(bench: Bench, kind: str, what: str, mixed: bool) -> Figures:
    """B/16 in bfloat16 on 64 images padded to 1,024 patches; ours takes the padding off, stock computes it."""
    images, length = (4, 64) if bench.tiny else (64, 1024)
    grids = mixed_grids(images) if mixed else [(32, 32)] * images
    if bench.tiny:
        grids = [(min(rows, 8), min(columns, 8)) for rows, columns in grids]
    model = tower(kind, **(TINY if bench.tiny else {})).to(bench.device, torch.bfloat16)
    inputs = {name: value.to(bench.device) for name, value in naflex_inputs(grids, length).items()}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    run = partial(RUNS[what], model, inputs)
    peak = bench.peak(run)
    found = bench.measure(lambda _: run(), seconds=2, most=20)
    seconds = 1e-3 * found["ms"]
    tokens = sum(rows * columns for rows, columns in grids)
    return {"images/s": images / seconds, "tokens/s": tokens / seconds, "bytes": peak} | found


def naflex(bench: Bench) -> Iterator[Item]:
    for mixed in (True, False):
        for what in RUNS:
            for kind in ("ours", "stock"):
                sizes = "mixed sizes" if mixed else "equal sizes"
                yield Item(f"{sizes}, {what}, {kind}", partial(measure_naflex, bench, kind, what, mixed))
