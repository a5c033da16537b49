"""What the losses cost, forward and backward: time against the three matrix products that are their floor, and memory.

    python benchmarks/loss.py                                    # all batches but the largest, some ten minutes
    python benchmarks/loss.py --sizes 65536                      # adds to the table: several minutes a line
    python benchmarks/loss.py --peer-python OTHER/bin/python     # with open_clip, from an environment that has it
    python benchmarks/loss.py --extreme                          # 262,144 pairs of width 64, one step

Each line is a fresh process. Its memory is the growth of the resident set over one step, from after a warm-up with a
small batch to the peak. Its time is the median ratio to the floor, the two timed in turn. Small batches are compared
with the stock expression of transformers instead. Everything measured is kept in benchmarks/results/loss.json; the
table and the plot beside it are drawn from that.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from report import RESULTS, machine, publish, store, stored, table


NAMES = ("tiled", "softmax", "eager", "stock", "open_clip")
SQUARE_MEMORY = ("eager", "stock", "open_clip")  # several B x B matrices: not beyond B = 16384
SMALL = (8, 32, 128, 256, 512, 1024)
LARGE = (1024, 2048, 4096, 8192, 16384)


# ---- one point, in its own process


def stock_loss(images, texts, logit_scale, logit_bias):
    """The expression of transformers' `SiglipModel.forward`."""
    logits = texts @ images.t() * logit_scale.exp() + logit_bias
    labels = -torch.ones_like(logits) + 2 * torch.eye(logits.size(0), device=logits.device)
    return -torch.sum(F.logsigmoid(labels * logits), dim=-1).mean()


def open_clip_loss() -> Callable:
    # Its torchvision has operators for CUDA only, and needs their schemas to be imported beside a torch for CPUs.
    global library
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from open_clip.loss import SigLipLoss

    loss = SigLipLoss()
    return lambda images, texts, scale, bias: loss(images, texts, scale.exp(), bias)


def make_loss(name: str) -> Callable:
    if name == "open_clip":
        return open_clip_loss()
    if name == "stock":
        return stock_loss
    from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss

    loss = softmax_loss if name == "softmax" else sigmoid_loss
    implementation = {"auto": "auto", "eager": "eager"}.get(name, "tiled")
    return lambda *arguments: loss(*arguments, distribution="none", implementation=implementation)


def make_step(loss: Callable, pairs: int, width: int, dtype: torch.dtype) -> Callable[[], float]:
    torch.manual_seed(0)
    arguments = [F.normalize(torch.randn(pairs, width)).to(dtype) for _ in range(2)]
    arguments += [torch.tensor([10.0]).log(), torch.tensor([-10.0])]
    for argument in arguments:
        argument.requires_grad_()

    def step() -> float:
        for argument in arguments:
            argument.grad = None
        value = loss(*arguments)
        value.backward()
        return value.item()

    return step


def make_floor(pairs: int, width: int, dtype: torch.dtype) -> Callable[[], None]:
    """Three products of B x B x D, in blocks of rows where a whole B x B matrix would be too large."""
    images, texts = (torch.randn(pairs, width, dtype=dtype) for _ in range(2))
    rows = min(pairs, 16384)
    block, text_gradient = torch.empty(rows, pairs, dtype=dtype), torch.empty(pairs, width, dtype=dtype)

    def floor() -> None:
        for part in images.split(rows):
            torch.mm(part, texts.mT, out=block[: len(part)])
            torch.mm(block[: len(part)], texts)
            torch.mm(block[: len(part)].mT, part, out=text_gradient)

    return floor


def resident_bytes(peak: bool) -> int:
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def first_step(step: Callable[[], float]) -> dict:
    """What the step returns, its seconds, and the bytes by which the resident set grows during it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = resident_bytes(peak=False), time.perf_counter()
    value = step()
    return {"value": value, "seconds": time.perf_counter() - start, "bytes": resident_bytes(peak=True) - before}


def measure(name: str, pairs: int, width: int, dtype: str, rounds: int) -> dict:
    from timing import alternate

    loss, kind = make_loss(name), getattr(torch, dtype)
    make_step(loss, 256, width, kind)()
    step = make_step(loss, pairs, width, kind)
    result = {"name": name, "pairs": pairs, "width": width, "dtype": dtype} | first_step(step)
    if rounds:
        if name == "auto":
            other, against = make_step(stock_loss, pairs, width, kind), "stock"
        else:
            other, against = make_floor(pairs, width, kind), "floor"
        ratio = alternate(step, other, rounds=rounds, warmup=1 if pairs < 65536 else 0)
        result |= {"against": against} | ratio.record()
    return result


# ---- all points


def rounds_for(pairs: int) -> int:
    """About as many as fit into a minute, at least one."""
    return max(1, min(60, 2**30 // pairs**2))


def run_point(python: str, name: str, pairs: int, width: int, dtype: str, rounds: int) -> dict:
    point = [name, pairs, width, dtype, rounds]
    command = [python, __file__, "--point", *map(str, point)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1]) | {"machine": machine()}


def describe(result: dict) -> str:
    text = (
        f"{result['name']} B={result['pairs']} D={result['width']} {result['dtype']}: {result['bytes'] / 1e6:.0f} MB"
    )
    text += f", {result['seconds']:.4g} s"
    if "ratio" in result:
        text += f", {result['ratio']:.3f} x {result['against']}"
        text += "" if result["low"] is None else f" [{result['low']:.3f}, {result['high']:.3f}]"
    return f"{text}, loss {result['value']:.6f}"


def large_cells(r: dict) -> list[str]:
    ratio = interval = floor = ""
    if "ratio" in r:
        ratio, floor = f"{r['ratio']:.3f}", f"{r['other_seconds']:.4g}"
        interval = "" if r["low"] is None else f"{r['low']:.3f}-{r['high']:.3f}"
    head = [r["dtype"], str(r["pairs"]), str(r["width"]), r["name"]]
    return [*head, ratio, interval, f"{r['seconds']:.4g}", floor, f"{r['bytes'] / 1e6:.0f}"]


def small_cells(r: dict) -> list[str]:
    ours, stock = r["seconds"] * 1e6, r["other_seconds"] * 1e6
    return [str(r["pairs"]), f"{ours:.0f}", f"{stock:.0f}", f"{ours - 1.05 * stock:.0f}"]


def render(results: list[dict]) -> list[str]:
    order = {name: place for place, name in enumerate(NAMES)}
    large = [result for result in results if result["name"] in order]
    large.sort(key=lambda r: (r["dtype"] != "float32", -r["width"], r["pairs"], order[r["name"]]))
    small = sorted((r for r in results if r["name"] == "auto"), key=lambda r: r["pairs"])
    lines = [
        "# The loss, forward and backward",
        "",
        f"Written by `benchmarks/loss.py`. {'; '.join(sorted({result['machine'] for result in results}))}.",
        "",
        "Time as a multiple of three B x B x D matrix products timed in turn (95 % interval of the median); seconds",
        "without one are of a single step. Memory is the growth of the resident set, gradients included. `eager`,",
        "`stock` (transformers) and `open_clip` (3.3) hold several B x B matrices; `tiled` and `softmax` are ours.",
        "",
        *table(
            ("dtype", "B", "D", "loss", "x floor", "", "seconds", "floor, s", "memory, MB"), map(large_cells, large)
        ),
    ]
    if small:
        lines += ["", 'Small batches, `implementation="auto"` against the stock expression.', ""]
        lines += table(("B", "ours, us", "stock, us", "ours - 1.05 stock, us"), map(small_cells, small))
    return lines


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in NAMES:
        chosen = (r for r in results if (r["name"], r["dtype"], r["width"]) == (name, "float32", 768))
        points = sorted(chosen, key=lambda r: r["pairs"])
        timed = [r for r in points if "ratio" in r]
        if not points:
            continue
        left.plot([r["pairs"] for r in timed], [r["ratio"] for r in timed], "o-", label=name)
        right.plot([r["pairs"] for r in points], [r["bytes"] / 1e6 for r in points], "o-", label=name)
    left.axhline(1, color="grey", linestyle=":")
    left.set(xlabel="pairs", ylabel="time / three matrix products", title="float32, D = 768")
    right.set(yscale="log", xlabel="pairs", ylabel="extra memory, MB", title="float32, D = 768")
    pairs = [r["pairs"] for r in results]
    for axes in (left, right):
        axes.set_xlim(min(pairs) / 1.2, max(pairs) * 1.2)
        axes.set_xscale("log", base=2)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=LARGE, help="batch sizes")
    parser.add_argument("--small", type=int, nargs="*", default=SMALL, help="batch sizes compared with stock")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, help="alternating pairs a point; 0 measures memory only")
    parser.add_argument("--peer-python", help="python of an environment with open_clip_torch")
    parser.add_argument("--extreme", action="store_true", help="only 262,144 pairs of width 64, both losses, one step")
    parser.add_argument("--point", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        name, pairs, width, dtype, rounds = options.point
        print(json.dumps(measure(name, int(pairs), int(width), dtype, int(rounds))))
        return

    points = []
    if options.extreme:
        points = [(name, 2**18, 64, "float32", 0) for name in ("tiled", "softmax")]
    else:
        rounds = (lambda pairs: options.rounds) if options.rounds is not None else rounds_for
        points += [("auto", pairs, options.width, "float32", 100) for pairs in options.small]
        for dtype in options.dtypes:
            for pairs in options.sizes:
                for name in options.names:
                    if name in SQUARE_MEMORY and pairs > 16384:
                        continue
                    # open_clip refuses bfloat16 embeddings beside a float32 temperature.
                    if name == "open_clip" and (dtype == "bfloat16" or not options.peer_python):
                        continue
                    points.append((name, pairs, options.width, dtype, rounds(pairs)))

    kept = RESULTS / "loss.json"
    results = stored(kept)
    for point in points:
        python = options.peer_python if point[0] == "open_clip" else sys.executable
        result = run_point(python, *point)
        print(describe(result), flush=True)
        results[" ".join(map(str, point[:4]))] = result
        store(kept, results)
    publish(kept.with_suffix(".md"), render(list(results.values())))
    plot(list(results.values()), kept.with_suffix(".png"))


if __name__ == "__main__":
    main()
