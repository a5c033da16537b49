"""What the benchmarks write: tables in Markdown, what was measured in JSON, and the line that names the machine.

The workers of `loss.py` and `peers.py` run where neither this package nor transformers is installed, so that both are
imported late here.
"""

import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch


RESULTS = Path(__file__).parent / "results"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table. Names of columns end in ":" where they are aligned to the right."""
    names = [column.removesuffix(":") for column in columns]
    rules = ["---:" if column.endswith(":") else "---" for column in columns]
    return [_row(names), f"|{'|'.join(rules)}|", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """The model of the processor, the threads in use, whether it multiplies bfloat16, and torch's version."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((s.split(":")[1].strip() for s in cpuinfo.read_text().splitlines() if "model name" in s), model)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bfloat16 = "in hardware" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "emulated"
    return f"{model}, {torch.get_num_threads()} threads, bfloat16 {bfloat16}, torch {torch.__version__}"


def versions(*details: str, transformers: bool = True) -> str:
    """The kind of processor, the details, and the versions of torch and (if it matters) transformers."""
    words = [platform.processor() or platform.machine(), *details, f"torch {torch.__version__}"]
    if transformers:
        from transformers import __version__

        words.append(f"transformers {__version__}")
    return ", ".join(words)


def stored(path: Path) -> dict[str, dict]:
    """What earlier runs have measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(path: Path, found: dict) -> None:
    from modeling_siglip_ext.files import write_text

    write_text(path, json.dumps(found, indent=2, allow_nan=False) + "\n")


def publish(path: Path, lines: Iterable[str], show: bool = True) -> None:
    """Write a page, and print it unless told otherwise."""
    from modeling_siglip_ext.files import write_text

    text = "\n".join(lines).rstrip("\n") + "\n"
    write_text(path, text)
    if show:
        print(text)
