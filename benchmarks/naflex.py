"""NaFlex without padding: B/16's image tower against stock `Siglip2VisionModel`, the same weights and padded inputs.

    python benchmarks/naflex.py                  # everything, some forty minutes on two cores
    python benchmarks/naflex.py equal memory     # parts of it; the others keep their lines in the table

Mixed: 64 images with budgets drawn evenly from 64 to 1,024 patches and shapes from 1:4 to 4:1, padded to 1,024 as the
stock processor pads them. Forward takes them at once, forward + backward by eight: the stock class needs the memory.
Equal: 8 images of 16 x 16 patches. Bars: at mixed sizes at least 1.8 times stock's images a second forward and 1.6
times forward + backward, in less memory; at equal sizes at least 0.97. Memory is the peak of anonymous memory of a
process of its own, above what it had with the model and the inputs. Results are kept in results/naflex.json; the table
beside it is drawn from that.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from conversion_worker import measure
from report import RESULTS, publish, store, stored, table, versions
from timing import Ratio, alternate
from torch import nn
from transformers import Siglip2VisionModel

from modeling_siglip_ext import SiglipExtVisionConfig, SiglipExtVisionModel, native_config


IMAGES, MICRO_BATCH, LONGEST = 64, 8, 1024
KINDS = ("ours", "stock")
Inputs = dict[str, torch.Tensor]


def mixed_grids(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Rows and columns that fill most of a budget."""
    draw = random.Random(seed)
    grids = []
    for _ in range(count):
        budget, aspect = draw.uniform(64, LONGEST), 4 ** draw.uniform(-1, 1)
        height = max(1, math.floor((budget * aspect) ** 0.5))
        grids.append((height, math.floor(budget / height)))
    return grids


def naflex_inputs(grids: list[tuple[int, int]], length: int) -> Inputs:
    shapes = torch.tensor(grids)
    mask = (torch.arange(length) < shapes.prod(1, keepdim=True)).long()
    patches = torch.randn(len(grids), length, 768) * mask[..., None]
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def tower(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = SiglipExtVisionConfig(naflex=True)
    ours = SiglipExtVisionModel(config)
    if kind == "ours":
        return ours
    stock = Siglip2VisionModel(native_config(config))
    stock.load_state_dict(ours.state_dict())
    return stock


def forward(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).pooler_output


def step(model: nn.Module, inputs: Inputs) -> None:
    """Forward and backward, in micro-batches."""
    model.train()
    for places in torch.arange(len(inputs["pixel_values"])).split(MICRO_BATCH):
        pooled = model(**{name: tensor[places] for name, tensor in inputs.items()}).pooler_output
        pooled.square().mean().backward()
    model.zero_grad(set_to_none=True)


RUNS: dict[str, Callable[[nn.Module, Inputs], object]] = {"forward": forward, "forward + backward": step}


def compare(name: str, inputs: Inputs, rounds: dict[str, int]) -> dict[str, dict]:
    ours, stock = map(tower, KINDS)
    some = {key: tensor[:MICRO_BATCH] for key, tensor in inputs.items()}
    torch.testing.assert_close(forward(ours, some), forward(stock, some), rtol=0, atol=1e-5)
    lines = {}
    for what, run in RUNS.items():
        run_ours, run_stock = partial(run, ours), partial(run, stock)
        run_ours(some), run_stock(some)  # warm
        ratio = alternate(partial(run_ours, inputs), partial(run_stock, inputs), rounds[what], warmup=0)
        lines[f"{name}, {what}"] = asdict(ratio) | {"images": len(inputs["pixel_values"])}
    return lines


def mixed_inputs() -> Inputs:
    return naflex_inputs(mixed_grids(IMAGES), LONGEST)


def measure_mixed() -> dict[str, dict]:
    inputs = mixed_inputs()
    tokens = int(inputs["pixel_attention_mask"].sum())
    name = f"{IMAGES} images of mixed sizes, {tokens:,} of {IMAGES * LONGEST:,} tokens"
    return compare(name, inputs, {"forward": 4, "forward + backward": 2})


def measure_equal() -> dict[str, dict]:
    inputs = naflex_inputs([(16, 16)] * MICRO_BATCH, 256)
    return compare(f"{MICRO_BATCH} images of 16 x 16 patches", inputs, {"forward": 12, "forward + backward": 8})


def measure_memory() -> dict[str, dict]:
    lines = {}
    for what in RUNS:
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", what, kind]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            lines.setdefault(f"mixed sizes, {what}", {})[kind] = found["bytes"]
    return lines


def one(what: str, kind: str) -> None:
    """In a process of its own: the memory of one run, forward of all images or a step of the first micro-batches."""
    model, inputs = tower(kind), mixed_inputs()
    if what != "forward":
        inputs = {name: tensor[: 2 * MICRO_BATCH] for name, tensor in inputs.items()}
    print(json.dumps(measure(lambda: RUNS[what](model, inputs))))


MEASURES = {"mixed": measure_mixed, "equal": measure_equal, "memory": measure_memory}


def render(results: dict[str, dict]) -> list[str]:
    rows, memory = [], []
    for name, found in results.items():
        if "ours" in found:
            ours, stock = found["ours"] / 1e6, found["stock"] / 1e6
            memory.append([name, f"{ours:,.0f}", f"{stock:,.0f}", f"{ours / stock:.2f}"])
        else:
            images, ratio = found["images"], Ratio(**{key: x for key, x in found.items() if key != "images"})
            rates = [f"{images / seconds:.2f}" for seconds in (ratio.seconds_a, ratio.seconds_b)]
            rows.append([name, *rates, f"{1 / ratio.median:.2f}", str(ratio)])
    return [
        "# NaFlex without padding",
        "",
        f"{versions(f'{torch.get_num_threads()} threads', 'float32')}; image tower of B/16 against stock "
        "`Siglip2VisionModel` with the same inputs, padded to the longest budget. Medians of alternating pairs.",
        "",
        *table(
            ("what", "ours, images/s:", "stock, images/s:", "times as fast:", "time, ours / stock"),
            rows,
        ),
        *("", "Peak of anonymous memory above the model's and the inputs':", ""),
        *table(("what", "ours, MB:", "stock, MB:", "ours / stock:"), memory),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(MEASURES)}; all by default")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one)
    path = RESULTS / "naflex.json"
    for part in args.parts or MEASURES:
        store(path, stored(path) | MEASURES[part]())
        publish(RESULTS / "naflex.md", render(stored(path)), show=False)
    print((RESULTS / "naflex.md").read_text())
    return None


if __name__ == "__main__":
    main()
