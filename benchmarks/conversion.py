"""What does a conversion cost? Time and memory of `from-jax`, against a floor that only moves the bytes.

    python benchmarks/conversion.py                               # the base model, 0.8 GB
    python benchmarks/conversion.py siglip2_g-opt16_256           # any name of the catalogue; this one is 7.5 GB
    python benchmarks/conversion.py --render                      # only the table, from what was measured before

Random weights of the real sizes stand for the released files. The floor reads every array with numpy, transposes it,
writes it, hashes the source, reads the result again and compares it with the source. Both run in fresh processes, in
turn; their times leave the imports out. The bars: at most 1.5 times the floor's time, and at most the largest array +
300 MB of anonymous memory above the idle imports. Every measured file is kept in benchmarks/results/conversion.json;
conversion.md is rendered from all of them.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from conversion_worker import run
from random_checkpoint import write_random
from report import RESULTS, machine, publish, store, stored, table

from modeling_siglip_ext.conversion.released.catalogue import find


STORE = RESULTS / "conversion.json"
NAMES = ["webli_en_b16_224_63724782"]


def compare(name: str, rounds: int, folder: Path) -> dict:
    """Both, in turn: medians of the seconds and of the ratio, the largest memory."""
    source = folder / f"{name}.npz"
    largest = write_random(find(name), source)
    found = {"floor": [], "ours": []}
    for _ in range(rounds):
        for kind, runs in found.items():
            target = folder / kind
            runs.append(run(kind, source, target))
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
    size = source.stat().st_size
    source.unlink()
    return {
        "file_bytes": size,
        "largest_array_bytes": largest,
        "rounds": rounds,
        "seconds": statistics.median(one["seconds"] for one in found["ours"]),
        "floor_seconds": statistics.median(one["seconds"] for one in found["floor"]),
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found["ours"], found["floor"])),
        "peak_bytes": max(one["bytes"] for one in found["ours"]),
        "machine": machine(),
    }


COLUMNS = (
    "file",
    "GB:",
    "rounds:",
    "ours, s:",
    "floor, s:",
    "ratio:",
    "ours, MB:",
    "largest array, MB:",
    "above it, MB:",
)


def cells(name: str, one: dict) -> list[str]:
    peak, largest = one["peak_bytes"] / 1e6, one["largest_array_bytes"] / 1e6
    return [
        name,
        f"{one['file_bytes'] / 1e9:.2f}",
        f"{one['rounds']}",
        f"{one['seconds']:.1f}",
        f"{one['floor_seconds']:.1f}",
        f"{one['ratio']:.2f}",
        f"{peak:,.0f}",
        f"{largest:,.0f}",
        f"{peak - largest:,.0f}",
    ]


def render(files: dict[str, dict]) -> list[str]:
    by_size = sorted(files.items(), key=lambda item: item[1]["file_bytes"])
    return [
        "# Conversion of a big_vision checkpoint, against a floor that only moves the bytes",
        "",
        "Medians of runs in turn; memory is anonymous, above the idle imports. The bars: a ratio of 1.5, and 300 MB "
        "above the largest array.",
        "",
        *table(COLUMNS, [cells(name, one) for name, one in by_size]),
        "",
        *sorted({f"{one['machine']}." for one in files.values()}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="with room for twice the file; the system's temporary folder unless given")
    parser.add_argument("--render", action="store_true", help="only render conversion.md from what is stored")
    arguments = parser.parse_args()
    for name in [] if arguments.render else arguments.names:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            files = {**stored(STORE), name: compare(name, arguments.rounds, Path(folder))}
        store(STORE, files)
    publish(STORE.with_suffix(".md"), render(stored(STORE)))


if __name__ == "__main__":
    main()
