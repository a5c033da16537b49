"""Everything that is to be measured on a GPU, in one command and at most 25 minutes.

    python benchmarks/gpu.py                                   # all sections
    python benchmarks/gpu.py --sections loss peers             # some of them; the others keep their results
    python benchmarks/gpu.py --device cpu --tiny               # a trial on a CPU, whose figures mean nothing
    python benchmarks/gpu.py --merge one.json other.json       # results of several runs into one file
    python benchmarks/gpu.py --report                          # the sections of the READMEs, from results/gpu.json

Each section runs in a process of its own, within its time: one that dies (an illegal access of a peer's kernel, say)
or takes too long is started again with what comes after. Results are written as they are found, so that a run may be
stopped at any moment. What a measurement raised is its result.
"""

import argparse
import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_parts import report
from gpu_parts.setting import Bench, Item, machine
from report import RESULTS, store, stored


# What is measured, by which function of gpu_parts, and the seconds it may take.
SECTIONS = {
    "ceilings": ("towers", "ceilings", 45),
    "loss": ("losses", "ours", 270),
    "peers": ("losses", "others", 180),
    "training": ("steps", "training", 330),
    "naflex": ("towers", "naflex", 75),
    "inference": ("towers", "inference", 150),
    "finetune": ("finetune", "finetune", 180),
    "profile": ("profiles", "profiles", 90),
    "tests": ("tests", "gpu_tests", 200),
}
GRACE = 20
RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Resources)\b.*", re.MULTILINE)


# ---- in the process of a section


def run_section(name: str, bench: Bench, path: Path, call: str, deadline: float) -> None:
    """Measure what this call has not tried yet."""
    where = machine(bench.device)
    module, function, _ = SECTIONS[name]
    # here, so that a package that one section lacks is none of the others' business
    items = getattr(importlib.import_module(f"gpu_parts.{module}"), function)
    for item in items(bench):
        tried = {key: found for key, found in stored(path).get(name, {}).items() if found.get("call") == call}
        stuck = {found.get("group") for found in tried.values() if "error" in found}
        if item.name in tried or (item.group and item.group in stuck):
            continue
        if time.time() > deadline:
            print(f"{name}: out of time before {item.name}", flush=True)
            return
        store(path, stored(path) | {report.UNDER_WAY: {"item": item.name, "group": item.group}})
        start = time.monotonic()
        found = attempt(item)
        bench.free()
        about = {"machine": where, "call": call, "group": item.group, "took": round(time.monotonic() - start, 1)}
        keep(path, name, item.name, found | about)


def attempt(item: Item) -> dict:
    try:
        return item.run()
    except torch.OutOfMemoryError:
        return {"error": report.TOO_LARGE}


def keep(path: Path, section: str, item: str, found: dict) -> None:
    results = stored(path)
    results.pop(report.UNDER_WAY, None)
    store(path, results | {section: results.get(section, {}) | {item: found}})
    shown = {key: value for key, value in found.items() if key not in ("machine", "call", "group", "kernels")}
    print(f"{section}: {item}: {shown}", flush=True)


# ---- in the process that starts them


def start_section(name: str, options: argparse.Namespace, path: Path, call: str, deadline: float) -> None:
    """Start a section until it has come to its end, each time behind what it died of."""
    words = ["--one", name, "--call", call, "--until", str(deadline), "--output", str(path)]
    words += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    while time.time() < deadline:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen([sys.executable, __file__, *words], stderr=errors, start_new_session=True)
            try:
                status = process.wait(max(1, deadline + GRACE - time.time()))
                reason = None
            except subprocess.TimeoutExpired:
                status, reason = 1, "out of time"
            finally:
                stop(process)
            errors.seek(0)
            said = errors.read()
        if status == 0:
            return
        print(said[-3000:], file=sys.stderr, flush=True)
        raised = RAISED.findall(said)
        reason = reason or (raised[-1][:300] if raised else f"exit status {status}")
        under_way = stored(path).get(report.UNDER_WAY)
        if not under_way:
            return keep(path, name, "start", {"error": reason, "call": call})
        keep(path, name, under_way["item"], {"error": reason, "call": call, "group": under_way["group"]})
    return None


def stop(process: subprocess.Popen) -> None:
    """A section with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end(*_: object) -> None:
    raise SystemExit(1)


def ceilings_in(results: dict) -> dict[str, float]:
    found = results.get("ceilings", {})
    rates = {"TFLOP/s": "bfloat16 product", "GB/s": "copy"}
    return {rate: found[item][rate] for rate, item in rates.items() if rate in found.get(item, {})}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a trial on a CPU")
    parser.add_argument("--minutes", type=float, default=25, help="of the whole run")
    parser.add_argument("--output", type=Path, help="JSON file that results go to; results/gpu.json unless tiny")
    parser.add_argument("--merge", type=Path, nargs="+", help="files whose results to take over, later ones first")
    parser.add_argument("--report", action="store_true", help="write the READMEs' sections and measure nothing")
    parser.add_argument("--one", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--call", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sections = [name for words in options.sections for name in words.split(",")]
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown sections {unknown}: choose from {', '.join(SECTIONS)}")
    if not (options.report or options.merge) and options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu --tiny tries the script on a CPU")
    return options


def main() -> None:
    options = parse()
    path = options.output or (Path(tempfile.gettempdir()) / "gpu_tiny.json" if options.tiny else RESULTS / "gpu.json")
    if options.one:
        bench = Bench(torch.device(options.device), options.tiny, ceilings_in(stored(path)))
        return run_section(options.one, bench, path, options.call, options.until)
    if options.merge:
        for other in options.merge:
            results = stored(path)
            sections = ((name, found) for name, found in stored(other).items() if name in SECTIONS)
            store(path, results | {name: results.get(name, {}) | found for name, found in sections})
    elif not options.report:
        signal.signal(signal.SIGTERM, end)
        store(path, {name: found for name, found in stored(path).items() if name != report.UNDER_WAY})
        last, call = time.time() + 60 * options.minutes, f"{time.time():.0f}"
        for name in options.sections:
            start_section(name, options, path, call, min(last, time.time() + SECTIONS[name][-1]))
    if options.report:
        report.publish(stored(RESULTS / "gpu.json"))
    elif path.exists():
        print("\n".join(report.page(stored(path))))
    return None


if __name__ == "__main__":
    main()
