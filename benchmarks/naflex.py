"""NaFlex without padding: B/16's image tower against stock `Siglip2VisionModel`, the same weights and padded inputs.

    python benchmarks/naflex.py                  # everything, a quarter of an hour on two cores
    python benchmarks/naflex.py equal memory     # parts of it; the others keep their lines in the table

Mixed: 64 images with budgets spread evenly from 64 to 1,024 patches and shapes from 1:4 to 4:1, padded to 1,024 as the
stock processor pads them, by eight, each eight by ours and by stock in turn. Equal: 4 images of 16 x 16 patches. Bars:
at mixed sizes at least 1.8 times stock's images a second forward and 1.6 times forward + backward, in less memory; at
equal sizes at least 0.97. Memory is the peak of anonymous memory of a process of its own over a batch of eight mixed
images, above what it had with the model and the inputs. Results are kept in results/naflex.json; the table beside it
is drawn from that.
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
from timing import Ratio, alternate, alternate_over
from torch import nn
from transformers import Siglip2VisionModel

from modeling_siglip_ext import SiglipExtVisionConfig, SiglipExtVisionModel, native_config


IMAGES, BATCH, LONGEST = 64, 8, 1024
KINDS = ("ours", "stock")
Inputs = dict[str, torch.Tensor]


def mixed_grids(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Rows and columns that fill most of a budget, in random order."""
    draw = random.Random(seed)
    budgets = [64 + (LONGEST - 64) * place / (count - 1) for place in range(count)]
    draw.shuffle(budgets)
    grids = []
    for budget in budgets:
        aspect = 4 ** draw.uniform(-1, 1)
        height = max(1, math.floor((budget * aspect) ** 0.5))
        grids.append((height, math.floor(budget / height)))
    return grids


def naflex_inputs(grids: list[tuple[int, int]], length: int) -> Inputs:
    shapes = torch.tensor(grids)
    mask = (torch.arange(length) < shapes.prod(1, keepdim=True)).long()
    patches = torch.randn(len(grids), length, 768) * mask[..., None]
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def tower(kind: str, **fields: int) -> nn.Module:
    torch.manual_seed(0)
    config = SiglipExtVisionConfig(naflex=True, **fields)
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
    model.train()(**inputs).pooler_output.square().mean().backward()
    model.zero_grad(set_to_none=True)


RUNS: dict[str, Callable[[nn.Module, Inputs], object]] = {"forward": forward, "forward + backward": step}


def towers_of_one_mind(inputs: Inputs) -> list[nn.Module]:
    """Our tower and stock's, which agree on these inputs."""
    ours, stock = map(tower, KINDS)
    torch.testing.assert_close(forward(ours, inputs), forward(stock, inputs), rtol=0, atol=1e-5)
    return [ours, stock]


def mixed_batches() -> list[Inputs]:
    grids = mixed_grids(IMAGES)
    return [naflex_inputs(grids[start : start + BATCH], LONGEST) for start in range(0, IMAGES, BATCH)]


def measure_mixed(what: str, count: int) -> dict[str, dict]:
    batches = mixed_batches()[:count]
    tokens = sum(int(batch["pixel_attention_mask"].sum()) for batch in batches)
    ours, stock = (partial(RUNS[what], model) for model in towers_of_one_mind(batches[0]))
    ratio = alternate_over(ours, stock, batches)
    images = BATCH * len(batches)
    name = f"{images} images of mixed sizes, {tokens:,} of {images * LONGEST:,} tokens, {what}"
    return {name: asdict(ratio) | {"images": images}}


def measure_equal(rounds: int) -> dict[str, dict]:
    inputs = naflex_inputs([(16, 16)] * 4, 256)
    models, lines = towers_of_one_mind(inputs), {}
    for what in RUNS:
        ratio = alternate(*(partial(RUNS[what], model, inputs) for model in models), rounds, warmup=1)
        lines[f"4 images of 16 x 16 patches, {what}"] = asdict(ratio) | {"images": 4}
    return lines


def measure_memory() -> dict[str, dict]:
    lines: dict[str, dict] = {}
    for what in RUNS:
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", what, kind]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            lines.setdefault(f"{BATCH} images of mixed sizes, {what}", {})[kind] = found["bytes"]
    return lines


MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, dict]]] = {
    "forward": lambda args: measure_mixed("forward", args.batches),
    "backward": lambda args: measure_mixed("forward + backward", args.batches),
    "equal": lambda args: measure_equal(args.rounds),
    "memory": lambda args: measure_memory(),
}


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
        "`Siglip2VisionModel` with the same inputs, padded to the longest budget. Of mixed sizes the sums over "
        "batches of eight, each by both in turn, of equal sizes the medians of alternating pairs; 95 % intervals.",
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
    parser.add_argument("--batches", type=int, default=IMAGES // BATCH, help="of eight mixed images")
    parser.add_argument("--rounds", type=int, default=12, help="alternating pairs of equal images")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, kind = args.one
        model, inputs = tower(kind), mixed_batches()[0]
        return print(json.dumps(measure(lambda: RUNS[what](model, inputs))))
    path = RESULTS / "naflex.json"
    for part in args.parts or MEASURES:
        store(path, stored(path) | MEASURES[part](args))
        publish(RESULTS / "naflex.md", render(stored(path)), show=False)
    print((RESULTS / "naflex.md").read_text())
    return None


if __name__ == "__main__":
    main()
