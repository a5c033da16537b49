"""What an export says of itself: `export.json` for runtimes, `export_report.json` for people and programs."""

from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from modeling_siglip_ext.files import write_json
from siglip_ext_runtime.settings import FORMAT, SETTINGS, ExportSettings

from .onnx_file import WRITERS
from .parity import Answers, Parity


REPORT = "export_report.json"
LIBRARIES = ("siglip-ext", "torch", "transformers")


@dataclass(frozen=True)
class TowerReport:
    """One file.

    Args:
        file: its name.
        bytes: with the weights beside it.
        parity: of its vectors with the model's in float32.
        answers: nearest neighbours, this tower against the other one in float32, or both of the file; None without
            another.
        cpu_time_ratio: how many times the CPU time of this file torch takes in float32, for one input in one thread.
        peak_memory: bytes of a process that loads the file and runs it once; None where the system does not tell.
        in_float: of a file in 8 bits, layers that were given back to float to keep what was asked for.
    """

    file: str
    bytes: int
    parity: Parity
    answers: Answers | None
    cpu_time_ratio: float
    peak_memory: int | None
    in_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportReport:
    """An export.

    Args:
        source: the model folder.
        format: "onnx", "openvino" or "aoti".
        precision: of the weights.
        opset: of ONNX files.
        samples: what it was judged on.
        towers: by name.
        answers: nearest neighbours among the vectors of both files; None where only one tower was exported.
        figures: of an evaluation, of the model and of the export, where a data set was given.
    """

    source: str
    format: str
    precision: str
    opset: int
    samples: str
    towers: dict[str, TowerReport]
    answers: Answers | None
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)


def versions(form: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in (*LIBRARIES, *WRITERS[form])}


def write_settings(folder: Path, settings: ExportSettings) -> None:
    write_json(folder / SETTINGS, {"format": FORMAT, **asdict(settings)})


def write_report(folder: Path, report: ExportReport) -> None:
    content: dict[str, Any] = {**asdict(report), "libraries": versions(report.format)}
    write_json(folder / REPORT, content)
