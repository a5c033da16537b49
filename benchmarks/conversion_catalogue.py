"""Does every released file convert? Each entry of the catalogue once, from random weights at full size.

    python benchmarks/conversion_catalogue.py                       # all that have not been converted yet
    python benchmarks/conversion_catalogue.py --next 1              # one of them
    python benchmarks/conversion_catalogue.py siglip2_g-opt16_256   # this one, again if need be

`siglip-ext-convert from-jax` converts and verifies; then the parameters in the written files are counted and compared
with the published number. Everything is deleted afterwards; the largest entry needs 15 GB. What was found is kept in
benchmarks/results/conversion_catalogue.json, and conversion_catalogue.md is rendered from it. A run that was stopped
goes on where it was; entries that failed are tried again. The exit status is 1 if one failed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from conversion_worker import run
from random_checkpoint import write_random
from report import RESULTS, machine, publish, store, stored, table
from safetensors import safe_open

from modeling_siglip_ext.conversion.released.catalogue import Entry, entries, find


STORE = RESULTS / "conversion_catalogue.json"
MEMORY = 300_000_000  # bytes above the largest array
OK = "as published"
NO_NUMBER = "no published number"


def parameters(folder: Path) -> int:
    """The numbers in a folder's files, counted by the safetensors library."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping, it cannot be iterated over
                part = 1
                for side in file.get_slice(name).get_shape():
                    part *= side
                count += part
    return count


def verdict(entry: Entry, report: dict, count: int, peak: int, largest: int) -> str:
    """What is wrong with a converted folder, or OK."""
    if (report["catalogue"], report["verified"], report["largest_difference"]) != (entry.name, True, 0):
        return f"the report says {report['catalogue']}, verified {report['verified']}"
    if count != report["parameters"]:
        return f"the files hold {count:,} numbers, the report says {report['parameters']:,}"
    if peak > largest + MEMORY:
        return f"memory {(peak - largest) / 1e6:,.0f} MB above the largest array"
    if entry.parameters is None:
        return NO_NUMBER
    return OK if entry.agrees(count) else f"{count:,} parameters, published {entry.parameters}"


def convert(entry: Entry, folder: Path) -> dict:
    """Make the file of an entry, convert it, and say what came out."""
    source, target = folder / f"{entry.name.replace('*', 'task')}.npz", folder / "converted"
    largest = write_random(entry, source)
    found = {"file_bytes": source.stat().st_size, "largest_array_bytes": largest, "machine": machine()}
    try:
        measured = run("ours", source, target)
    except RuntimeError as error:
        return {**found, "result": str(error)}
    report = json.loads((target / "conversion_report.json").read_text())
    count = parameters(target)
    return {
        **found,
        "class": report["class"],
        "parameters": count,
        "published": entry.parameters,
        "seconds": measured["seconds"],
        "peak_bytes": measured["bytes"],
        "result": verdict(entry, report, count, measured["bytes"], largest),
    }


def good(found: dict | None) -> bool:
    return found is not None and found["result"] in (OK, NO_NUMBER)


COLUMNS = (
    *("entry", "becomes", "parameters:", "published:", "GB:", "seconds:", "peak, MB:", "above array, MB:"),
    "result",
)


def cells(name: str, one: dict) -> list[str]:
    found = [f"`{name}`", one.get("class", "")]
    if "seconds" in one:
        published = one["published"]
        published = "" if published is None else published if isinstance(published, str) else f"{published:,}"
        above = (one["peak_bytes"] - one["largest_array_bytes"]) / 1e6
        found += [f"{one['parameters']:,}", published, f"{one['file_bytes'] / 1e9:.2f}"]
        found += [f"{one['seconds']:.0f}", f"{one['peak_bytes'] / 1e6:,.0f}", f"{above:,.0f}"]
    else:
        found += ["", "", f"{one['file_bytes'] / 1e9:.2f}", "", "", ""]
    return [*found, one["result"]]


def render(files: dict[str, dict]) -> list[str]:
    known = [name for name in entries() if name in files]
    failed = [name for name in known if not good(files[name])]
    return [
        "# Every entry of the catalogue, converted from random weights at full size",
        "",
        f"{len(known)} of {len(entries())} entries, {len(failed)} failed. Each was verified tensor by tensor; memory "
        "is anonymous, its peak above the idle imports, and above the largest array. The published number of "
        "PaliGemma leaves the projection out, that of LiT has the position of the class token, which is added into "
        "the token.",
        "",
        *table(COLUMNS, [cells(name, files[name]) for name in known]),
        "",
        *sorted({f"{one['machine']}." for one in files.values()}),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="entries; all that have not been converted yet unless given")
    parser.add_argument("--next", type=int, help="at most so many of those")
    parser.add_argument("--folder", help="with room for twice the file; the system's temporary folder unless given")
    parser.add_argument("--results", type=Path, default=STORE, help="the JSON file; the table is written beside it")
    arguments = parser.parse_args()
    before = stored(arguments.results)
    waiting = [name for name in entries() if not good(before.get(name))]
    waiting.sort(key=lambda name: name in before)  # those that failed come last
    names = [find(name).name for name in arguments.names] or waiting[: arguments.next]
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = convert(find(name), Path(folder))
        files = {**stored(arguments.results), name: found}
        store(arguments.results, files)
        publish(arguments.results.with_suffix(".md"), render(files), show=False)
        failed |= not good(found)
        print(f"{name}: {found['result']}, {found.get('seconds', 0):.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
