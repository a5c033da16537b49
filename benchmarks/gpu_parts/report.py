"""What the READMEs say of the GPU, from results/gpu.json: between two marks, written by nobody else."""

import re
from pathlib import Path
from statistics import median

from report import publish as write
from report import table


REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- gpu: from benchmarks/results/gpu.json, by `benchmarks/gpu.py --report` -->", "<!-- end of gpu -->"
NOT_YET = [
    "Nothing has been measured on a GPU yet. `python benchmarks/gpu.py` measures everything in 25 minutes,",
    "`python benchmarks/gpu.py --report` writes it here.",
]
TITLES = {"expression": "open_clip's expression"}
OURS = ("tiled", "triton")
LONGEST = 8  # kernels
COMPARED = 65536  # pairs, of errors and of the short table
UNDER_WAY = "running"  # the measurement that a run is at, or was stopped at
TOO_LARGE = "out of memory"
Results = dict[str, dict]


# ---- numbers


def duration(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:,.1f} s" if milliseconds >= 1e4 else f"{milliseconds:,.1f} ms"


def gigabytes(count: float | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def percent(found: dict, key: str) -> str:
    return f"{found[key]:.0%}" if key in found else ""


def measured(results: Results, section: str) -> dict[str, dict]:
    """What was measured, without what failed."""
    return {name: found for name, found in results.get(section, {}).items() if "error" not in found}


def failed(results: Results) -> list[str]:
    """What could not be measured, and why; where memory did not suffice, the tables say so."""
    entries = [pair for items in results.values() for pair in items.items() if "error" in pair[1]]
    return [f"- {name}: {found['error']}" for name, found in entries if found["error"] != TOO_LARGE]


def fastest(found: dict[str, dict], prefix: str, rate: str) -> dict:
    """The entry with the highest rate among those whose names begin so; {} if there is none."""
    chosen = [entry for name, entry in found.items() if name.startswith(prefix) and rate in entry]
    return max(chosen, key=lambda entry: entry[rate], default={})


# ---- the losses


def losses(results: Results) -> dict[tuple[str, str, int, str], dict]:
    """All points of the losses: (kind, implementation, pairs, dtype) and what was found, errors too."""
    points = {}
    for section in ("loss", "peers"):
        for name, found in results.get(section, {}).items():
            words = name.split(", ")
            if len(words) == 4:
                points[words[0], words[1], int(words[2]), words[3]] = found
    return points


def loss_table(results: Results, kind: str, dtype: str) -> list[str]:
    points = {key: found for key, found in losses(results).items() if key[0] == kind and key[3] == dtype}
    names = list(dict.fromkeys(name for _, name, _, _ in points))
    rows = []
    for pairs in sorted({pairs for _, _, pairs, _ in points}):
        cells = [points.get((kind, name, pairs, dtype), {}) for name in names]
        rows.append([f"{pairs:,}", *map(loss_cell, cells)])
    if not rows:
        return []
    columns = ["pairs:", *(f"{TITLES.get(name, name)}:" for name in names)]
    return [f"{kind.capitalize()}, {dtype}:", "", *table(columns, rows), ""]


def loss_cell(found: dict) -> str:
    if not found:
        return ""
    if "error" in found:
        return found["error"] if found["error"] == TOO_LARGE else "failed"
    return ", ".join(filter(None, (duration(found["ms"]), gigabytes(found["bytes"]))))


def error_table(results: Results) -> list[str]:
    points = {key: found for key, found in losses(results).items() if "errors" in found and key[3] == "bfloat16"}
    largest = max((pairs for _, _, pairs, _ in points if pairs <= COMPARED), default=0)
    rows = [
        [kind, TITLES.get(name, name), *(f"{found['errors'][x]:.0e}" if x in found["errors"] else "" for x in ERRORS)]
        for (kind, name, pairs, _), found in points.items()
        if pairs == largest
    ]
    if not rows:
        return []
    what = f"Relative errors against float64 on the same numbers, {largest:,} pairs in bfloat16:"
    return [what, "", *table(["loss", "", *(f"{name}:" for name in ERRORS)], sorted(rows)), ""]


ERRORS = ("value", "images", "texts", "scale", "bias")


# ---- the page


def rate_table(found: dict[str, dict], rate: str) -> list[str]:
    rows = []
    for name, x in found.items():
        if rate in x:
            shares = percent(x, "of_nominal"), percent(x, "of_reached")
            cells = f"{x['batch']:,}", f"{x[rate]:,.0f}", f"{x['TFLOP/s']:,.0f}", *shares, gigabytes(x.get("bytes"))
            rows.append([name, *cells])
    columns = ("what", "batch:", f"{rate}:", "TFLOP/s:", "of 989:", "of the product's:", "memory:")
    return [*table(columns, rows), ""] if rows else []


def naflex_table(found: dict[str, dict]) -> list[str]:
    names = list(dict.fromkeys(name.rpartition(", ")[0] for name in found))
    rows = []
    for name in names:
        sides = [found.get(f"{name}, {kind}", {}) for kind in ("ours", "stock")]
        if all(sides):
            ratio = sides[0]["images/s"] / sides[1]["images/s"]
            cells = [f"{side['images/s']:,.0f}" for side in sides] + [f"{ratio:.2f}"]
            rows.append([name, *cells, *(gigabytes(side["bytes"]) for side in sides)])
    columns = ("what", "ours, images/s:", "stock, images/s:", "times as fast:", "memory, ours:", "memory, stock:")
    return [*table(columns, rows), ""] if rows else []


def profile_table(found: dict[str, dict]) -> list[str]:
    if not found:
        return []
    kinds = sorted(
        {kind for entry in found.values() for kind in entry["kinds"]},
        key=lambda kind: -median(entry["kinds"].get(kind, 0.0) for entry in found.values()),
    )
    rows = [[kind, *(f"{entry['kinds'].get(kind, 0.0):.1%}" for entry in found.values())] for kind in kinds]
    rows += [["the device is busy", *(f"{entry['busy']:.0%}" for entry in found.values())]]
    title = "Where the device's time goes in a step of training and in a loss:"
    lines = [title, "", *table(["kernels", *(f"{name}:" for name in found)], rows), ""]
    for name, entry in found.items():
        longest = list(entry["kernels"].items())[:LONGEST]
        rows = [[f"`{kernel[:90].replace('|', ' ')}`", f"{time:.1%}"] for kernel, time in longest]
        lines += [f"The longest kernels, {name}:", "", *table(("kernel", "share:"), rows), ""]
    return lines


def page(results: Results) -> list[str]:
    """The section of benchmarks/README.md."""
    results = {section: items for section, items in results.items() if section != UNDER_WAY}
    entries = [found for items in results.values() for found in items.values()]
    machines = sorted({found["machine"] for found in entries if "machine" in found})
    if not machines:
        return NOT_YET
    lines = [f"[`gpu.json`](results/gpu.json): {'; '.join(machines)}.", ""]
    ceilings = measured(results, "ceilings")
    if "copy" in ceilings and "bfloat16 product" in ceilings:
        copied, multiplied = ceilings["copy"]["GB/s"], ceilings["bfloat16 product"]["TFLOP/s"]
        lines += [
            f"What the card reaches: {copied:,.0f} GB/s in a copy (read and written), {multiplied:,.0f} TFLOP/s in a "
            "bfloat16 product of 8,192 x 8,192 x 8,192.",
            "",
        ]
    if losses(results):
        lines += [
            "The losses, forward and backward, width 768: time, and memory beside the embeddings with the gradients.",
            "",
        ]
        for kind, dtype in (("sigmoid", "bfloat16"), ("softmax", "bfloat16"), ("sigmoid", "float32")):
            lines += loss_table(results, kind, dtype)
        lines += error_table(results)
    training = measured(results, "training")
    if training:
        lines += [
            "A step of training, 64 tokens, bfloat16 autocast, fused AdamW; memory is what is allocated:",
            "",
        ]
        lines += rate_table(training, "pairs/s")
    inference = measured(results, "inference")
    if inference:
        lines += ["Towers alone, bfloat16:", "", *rate_table(inference, "images/s"), *rate_table(inference, "texts/s")]
    naflex = measured(results, "naflex")
    if naflex:
        lines += ["NaFlex B/16, 64 images padded to 1,024 patches, of which ours computes none that is padding:", ""]
        lines += naflex_table(naflex)
    for name, found in measured(results, "finetune").items():
        rate = "images/s" if "images/s" in found else "pairs/s"
        workers = f", {found['workers']} processes read" if "workers" in found else ""
        lines += [f"{name}: {found[rate]:,.0f} {rate}, batch {found['batch']:,}{workers}.", ""]
    lines += profile_table(measured(results, "profile"))
    for found in measured(results, "tests").values():
        lines += [f"`tests/gpu`: {found['summary']}.", ""]
    lost = failed(results)
    return [*lines, *(["Not measured:", "", *lost] if lost else [])]


def summary(results: Results) -> list[str]:
    """The short table of the README."""
    points = losses(results)
    rows = []
    timed = [key[2] for key, x in points.items() if key[0] == "sigmoid" and key[1] in OURS and "ms" in x]
    for pairs in sorted({COMPARED, *([max(timed)] if timed else [])}):
        at = {name: x for (kind, name, n, of), x in points.items() if (kind, n, of) == ("sigmoid", pairs, "bfloat16")}
        ours = [x for name, x in at.items() if name in OURS and "ms" in x]
        others = [f"{TITLES.get(n, n)} {loss_cell(x)}" for n, x in at.items() if n not in (*OURS, "eager")]
        if ours:
            quickest = min(ours, key=lambda x: x["ms"])
            rows.append([f"sigmoid loss, {pairs:,} pairs", loss_cell(quickest), "; ".join(others)])
    for title, section, prefix, rate in (
        ("training B/16-224", "training", "B/16-224, ", "pairs/s"),
        ("image tower B/16-224", "inference", "B/16-224, image", "images/s"),
        ("`finetune` from JPEGs, B/16-224", "finetune", "siglip-ext-train", "images/s"),
    ):
        plain = {name: x for name, x in measured(results, section).items() if "gradient cache" not in name}
        found = fastest(plain, prefix, rate)
        if found:
            peak = f"{found['of_nominal']:.0%} of 989 TFLOP/s" if "of_nominal" in found else ""
            rows.append([title, f"{found[rate]:,.0f} {rate}", peak])
    if not rows:
        return [
            "Nothing has been measured on a GPU yet; [`benchmarks/gpu.py`](benchmarks/README.md#on-a-gpu) does it."
        ]
    return table(("[on one GPU](benchmarks/README.md#on-a-gpu), bfloat16", "here", "beside it"), rows)


# ---- into the pages


def sections(results: Results) -> dict[Path, list[str]]:
    return {REPOSITORY / "benchmarks" / "README.md": page(results), REPOSITORY / "README.md": summary(results)}


def replaced(text: str, lines: list[str]) -> str:
    """A page with these lines between the marks."""
    while lines and not lines[-1]:
        lines = lines[:-1]
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    assert between.search(text), f"the page lacks the marks {BEGIN} and {END}"
    return between.sub(lambda _: "\n".join([*lines, ""]), text)


def publish(results: Results) -> None:
    for path, lines in sections(results).items():
        write(path, [replaced(path.read_text(encoding="utf-8"), lines)], show=False)
        print(f"wrote {path.relative_to(REPOSITORY)}")
