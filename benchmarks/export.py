"""What an export keeps and costs: B/16 with random weights, fixed and NaFlex.

    python benchmarks/export.py [--exports "onnx fp32" "openvino int8"] [--model FOLDER] [--grids 50]

For every export: seconds and peak memory of the whole command in a process of its own; vectors against torch in
float32; for NaFlex 50 grids under each of three budgets of patches, none of which any export saw; the CPU time of
torch as a multiple of the file's at batches of 1 and 16, in turn and in one thread; memory of a process that runs the
file.
Random weights tell what rounding does and nothing of what a trained model loses: `--model` measures one of your own,
`--images` and `--texts` are then those to calibrate 8 bits on.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from report import RESULTS, machine, publish, store, stored, table
from timing import alternate, with_interval
from torch.nn import functional as F

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, fit_processor, train_tokenizer
from modeling_siglip_ext.conversion.export.export import load_part
from modeling_siglip_ext.conversion.export.samples import drawn_captions, take_samples
from modeling_siglip_ext.conversion.export.towers import TEXT, VISION, vision_of
from modeling_siglip_ext.conversion.export.vectors import by_file, by_torch, inputs_of
from modeling_siglip_ext.conversion.model_folder.folder import open_folder
from modeling_siglip_ext.image_budget import collate
from modeling_siglip_ext.image_processing_siglip_ext import image_processor_for
from modeling_siglip_ext.processing_siglip_ext import SiglipExtProcessor
from modeling_siglip_ext.threads import one_thread
from siglip_ext_runtime import ExportedModel
from siglip_ext_runtime.settings import read_settings


BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISIONS = {"B/16-224": {"image_size": 224}, "B/16 NaFlex": {"naflex": True, "num_patches": 256}}
EXPORTS = ("onnx fp32", "onnx fp16", "onnx int8", "openvino fp32", "openvino int8")
BUDGETS = (64, 256, 1024)
BATCHES = {1: 20, 16: 8}  # and pairs of runs with them
WORKER = """
import sys, time
from modeling_siglip_ext.conversion.__main__ import main
from siglip_ext_runtime.memory import peak_memory
start = time.perf_counter()
status = main(sys.argv[1:])
print("MEASURED", time.perf_counter() - start, time.process_time(), peak_memory())
sys.exit(status)
"""


def write_model(folder: Path, vision: dict) -> None:
    """A model of random weights, and a processor with a small tokenizer."""
    torch.manual_seed(0)
    config = SiglipExtConfig(text_config={**BASE, "vocab_size": 32000}, vision_config={**BASE, **vision})
    SiglipExtModel(config).save_pretrained(folder)
    tokenizer = train_tokenizer(drawn_captions(), vocab_size=300, max_length=64)
    processor = SiglipExtProcessor(image_processor_for(config.vision_config), tokenizer)
    fit_processor(processor, config).save_pretrained(str(folder))


def export(folder: Path, out: Path, kind: str, options: list[str]) -> dict[str, float]:
    """Run the command in a process of its own; its wall and CPU seconds without the imports, and its peak in bytes."""
    backend, precision = kind.split()
    words = [f"to-{backend}", str(folder), str(out), "--precision", precision, *options]
    result = subprocess.run([sys.executable, "-c", WORKER, *words], stdout=subprocess.PIPE, text=True, check=True)
    found = next(line for line in result.stdout.splitlines() if line.startswith("MEASURED")).split()
    return dict(zip(("seconds", "cpu_seconds", "peak"), map(float, found[1:])))


def random_grids(count: int, budget: int) -> torch.Tensor:
    """Rows and columns of `count` grids of at most so many patches, (count, 2)."""
    generator = torch.Generator().manual_seed(budget)
    rows = (
        torch.exp(torch.rand(count, generator=generator) * torch.tensor(float(budget)).log()).long().clamp(1, budget)
    )
    most = budget // rows
    return torch.stack([rows, (most * (0.5 + torch.rand(count, generator=generator) / 2)).long().clamp(min=1)], dim=1)


def naflex_differences(folder: Path, out: Path, backend: str, count: int) -> dict[str, float]:
    """The largest difference of a component of unit vectors, by budget; one image at a time and all grids anew."""
    model, found = load_part(open_folder(folder), VISION), ExportedModel(out, backend)
    values = 3 * model.config.patch_size**2
    differences = {}
    for budget in BUDGETS:
        worst = 0.0
        for grid in random_grids(count, budget):
            length = int(grid.prod())
            inputs = {
                "pixel_values": torch.rand(1, length + 3, values) * 2 - 1,
                "pixel_attention_mask": (torch.arange(length + 3) < length).long()[None],
                "spatial_shapes": grid[None],
            }
            with torch.no_grad():
                wanted = F.normalize(model(**inputs).pooler_output, dim=-1)
            worst = max(worst, float((found.get_image_features(**inputs).embeds - wanted).abs().max()))
        differences[str(budget)] = worst
    return differences


def speeds(folder: Path, out: Path, backend: str) -> dict[str, dict]:
    """Torch's CPU time over the file's, by tower and batch."""
    source, files = open_folder(folder), read_settings(out).files
    samples, found = take_samples(folder, source.config), {}
    for name in (VISION, TEXT):
        embed, file = by_torch(load_part(source, name), name), by_file(out / files[name], name, backend, threads=1)
        inputs = inputs_of(samples, name)
        for size, rounds in BATCHES.items():
            sides = [partial(run, collate(inputs[:size])) for run in (embed, file)]
            with one_thread():
                found[f"{name} {size}"] = alternate(*sides, rounds, warmup=1, clock=time.process_time).record()
    return found


def measure(folder: Path, kind: str, options: list[str], grids: int, speed: bool) -> dict:
    naflex = getattr(vision_of(open_folder(folder).config), "naflex", False)
    backend = kind.split()[0]
    with TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch) / "out"
        found: dict = export(folder, out, kind, options)
        found["report"] = json.loads((out / "export_report.json").read_text(encoding="utf-8"))
        found["naflex"] = naflex_differences(folder, out, backend, grids) if naflex else {}
        found["speeds"] = speeds(folder, out, backend) if speed else {}
    return found


def ratio_of(speeds: dict[str, dict], tower: str, size: int) -> str:
    ratio = speeds.get(f"{tower} {size}")
    return with_interval(ratio["ratio"], ratio["low"], ratio["high"], digits=2) if ratio else ""


def rows_of(results: dict[str, dict]) -> list[list[str]]:
    rows = []
    for name, found in results.items():
        towers = found["report"]["towers"]
        for tower, about in towers.items():
            parity, memory = about["parity"], about["peak_memory"]
            rows.append(
                [
                    *name.split(": "),
                    tower.removesuffix("_model"),
                    f"{parity['largest_difference']:.1e}",
                    f"{1 - parity['cosine_least']:.1e}",
                    f"{1 - parity['centred_cosine_least']:.1e}",
                    f"{parity['batch_largest_difference']:.1e}",
                    f"{about['bytes'] / 1e6:.0f}",
                    "" if memory is None else f"{memory / 1e6:.0f}",
                    *(ratio_of(found["speeds"], tower, size) for size in BATCHES),
                ]
            )
    return rows


COLUMNS = (
    *("model", "export", "tower", "largest difference:", "1 − least cosine:", "the same, centred:"),
    *("batch 1 against 64:", "file, MB:", "memory, MB:", "torch's CPU time, batch 1:", "batch 16:"),
)


def lines_of(results: dict[str, dict]) -> list[str]:
    costs = [
        [*name.split(": "), f"{one['seconds']:.0f}", f"{one['cpu_seconds']:.0f}", f"{one['peak'] / 1e9:.2f}"]
        for name, one in results.items()
    ]
    grids = [
        [*name.split(": "), *(f"{one['naflex'][str(budget)]:.1e}" for budget in BUDGETS)]
        for name, one in results.items()
        if one["naflex"]
    ]
    return [
        "# Export",
        "",
        f"{machine()}; {time.strftime('%Y-%m-%d')}. `benchmarks/export.py` says what is measured.",
        "",
        *table(COLUMNS, rows_of(results)),
        "",
        "The whole command, both towers, with its comparison and measurements:",
        "",
        *table(("model", "export", "seconds:", "CPU seconds:", "peak, GB:"), costs),
        "",
        "NaFlex, grids and budgets that no export saw: largest difference of a component of unit vectors.",
        "",
        *table(("model", "export", *(f"{budget} patches:" for budget in BUDGETS)), grids),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exports", nargs="+", default=EXPORTS, help="a backend and a precision each")
    parser.add_argument("--models", nargs="+", default=list(VISIONS), choices=VISIONS)
    parser.add_argument("--model", type=Path, help="a folder of your own, in place of random ones")
    parser.add_argument("--images", help="a folder, for to-onnx and to-openvino")
    parser.add_argument("--texts", help="a file, likewise")
    parser.add_argument("--grids", type=int, default=50, help="of each budget")
    parser.add_argument("--no_speed", action="store_true", help="leave out the CPU times of batches")
    arguments = parser.parse_args()
    path = RESULTS / "export.json"
    results = stored(path)
    given = {"--images": arguments.images, "--texts": arguments.texts}
    options = [word for name, value in given.items() if value for word in (name, value)]
    with TemporaryDirectory() as scratch:
        folders = {arguments.model.name: arguments.model} if arguments.model else {}
        for name in () if arguments.model else arguments.models:
            folders[name] = Path(scratch) / name.replace("/", "-").replace(" ", "-")
            write_model(folders[name], VISIONS[name])
        for name, folder in folders.items():
            for kind in arguments.exports:
                found = measure(folder, kind, options, arguments.grids, not arguments.no_speed)
                results[f"{name}: {kind}"] = found
                store(path, results)
                print(name, kind, found["seconds"], found["peak"], found["naflex"], found["speeds"], flush=True)
    publish(RESULTS / "export.md", lines_of(results))


if __name__ == "__main__":
    main()
