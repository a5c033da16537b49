"""What does finding near-duplicates cost, beside the bare product of all pairs, and in how much memory?

    python benchmarks/duplicates.py     # writes benchmarks/results/duplicates.md; three minutes, 2 GB of disk

Vectors of width 768 in float16 lie on disk as `embed` writes them. All pairs of 100,000, of which 10,000 are copies of
one, are compared to the end. All pairs of a million take long, so the first minute is timed, against the bare product
of whole vectors in float32, timed before and after.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from report import RESULTS, machine, publish, store, stored, table

from modeling_siglip_ext import embedding_store
from modeling_siglip_ext.embedding_blocks import StoredBlocks, open_blocks
from modeling_siglip_ext.embedding_parts import write_part
from modeling_siglip_ext.evaluation import find_duplicates
from modeling_siglip_ext.evaluation.metrics.duplicates import HELD
from modeling_siglip_ext.files import write_json


WIDTH, PART = 768, 50_000
THRESHOLD = 0.95


class TimeIsUpError(Exception):
    """Ends a run that is timed in part."""


@dataclass(frozen=True)
class Timed:
    """Stored vectors that end after some seconds."""

    stored: StoredBlocks
    seconds: float
    compared: list[float]

    @property
    def rows(self) -> int:
        return self.stored.rows

    def blocks(self, first: int = 0, /) -> Iterator[tuple[int, torch.Tensor]]:
        start = time.perf_counter()
        for place, block in self.stored.blocks(first):
            # the rows before this block have been compared with those that are held, and these with each other
            self.compared[:] = [place * HELD - HELD**2 / 2, time.perf_counter() - start]
            if self.compared[1] > self.seconds and place > HELD:
                raise TimeIsUpError
            yield place, block


def write(folder: Path, rows: int, copies: int) -> None:
    """Random vectors, and copies of the first one spread among them."""
    folder.mkdir()
    write_json(
        folder / embedding_store.SETTINGS, {"rows": rows, "part_rows": PART, "form": "parquet", "kind": "image"}
    )
    torch.manual_seed(0)
    one = torch.randn(WIDTH)
    for part, first in enumerate(range(0, rows, PART)):
        vectors = torch.randn(min(PART, rows - first), WIDTH)
        vectors[torch.randperm(len(vectors))[: copies * len(vectors) // rows]] = one
        vectors = torch.nn.functional.normalize(vectors, dim=1).half()
        write_part(folder / f"part-{part:05d}.parquet", first, vectors)


def memory() -> float:
    """The most that this process has had, in MB; `getrusage` would count the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def bare() -> float:
    """Pairs a second of whole vectors in float32, in blocks of the best size."""
    a, b = torch.randn(4096, WIDTH), torch.randn(4096, WIDTH)
    a @ b.T
    start, rounds = time.perf_counter(), 8
    for _ in range(rounds):
        a @ b.T
    return rounds * 4096**2 / (time.perf_counter() - start)


def work(kind: str, folder: str, seconds: float) -> None:
    """In a process of its own, whose memory is measured; prints what it found."""
    before, product = memory(), bare()
    vectors, start, cpu = open_blocks(folder), time.perf_counter(), time.process_time()
    if kind == "copies":
        found = find_duplicates(vectors, THRESHOLD)
        taken, pairs = time.perf_counter() - start, vectors.rows**2 / 2
        largest = max(len(group.rows) for group in found.groups)
    else:
        compared: list[float] = []
        try:
            find_duplicates(Timed(vectors, seconds, compared), THRESHOLD)
        except TimeIsUpError:
            pairs, taken = compared
        largest = 0
    cpu = time.process_time() - cpu
    rate, product = pairs / taken, (product + bare()) / 2
    print(taken, cpu, pairs, rate, product, memory() - before, largest)


def measure(kind: str, rows: int, copies: int, seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / "vectors", rows, copies)
        command = [sys.executable, __file__, "--worker", kind, str(Path(scratch) / "vectors"), str(seconds)]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    names = ("seconds", "cpu", "pairs", "rate", "product", "memory", "largest_group")
    return {"rows": rows, "copies": copies, **dict(zip(names, map(float, words)))}


COLUMNS = (
    "vectors",
    "of them copies",
    "seconds:",
    "of CPU:",
    "pairs a second:",
    "/ bare product:",
    "whole run, min:",
    "memory, MB:",
)


def cells(found: dict) -> list[str]:
    ratio, whole = found["rate"] / found["product"], found["rows"] ** 2 / 2 / found["rate"] / 60
    return [
        f"{found['rows']:,}",
        f"{found['copies']:,}",
        f"{found['seconds']:.1f}",
        f"{found['cpu']:.1f}",
        f"{found['rate'] / 1e6:,.0f} M",
        f"{ratio:.2f}",
        f"{whole:.1f}",
        f"{found['memory']:.0f}",
    ]


def render(found: dict, note: str) -> list[str]:
    return [
        "# Near-duplicates",
        "",
        f"Written by `benchmarks/duplicates.py`. {machine()}.{f' {note}.' if note else ''}",
        f"Vectors of width {WIDTH} in float16 on disk, threshold {THRESHOLD}; 1 is the rate of the bare product of",
        "whole vectors in float32, measured before and after. A million vectors were compared for the time that is",
        "shown, and their whole run is extrapolated. Memory is the growth of the process, the vectors that are held",
        "included.",
        "",
        *table(COLUMNS, [cells(one) for one in found.values()]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of the million vectors")
    parser.add_argument("--only", choices=("copies", "million"), help="keep the other as it was measured")
    parser.add_argument("--note", default="", help="what else the machine did")
    args = parser.parse_args()
    path = RESULTS / "duplicates.json"
    found = stored(path)
    for kind, rows, copies in (("copies", 100_000, 10_000), ("million", 1_000_000, 0)):
        if args.only in (None, kind):
            found[kind] = measure(kind, rows, copies, args.seconds)
    store(path, found)
    publish(RESULTS / "duplicates.md", render(found, args.note))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
