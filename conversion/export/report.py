"""What an export says of itself: `export.json` for runtimes, `export_report.json` for people and programs."""

from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from modeling_siglip_ext.files import write_json
from siglip_ext_runtime.settings import FORMAT, SETTINGS, ExportSettings

from .parity import Answers, Parity


REPORT = "export_report.json"
LIBRARIES = ("siglip-ext", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class TowerReport:
    """One file.

    Args:
        file: its name.
        bytes: with the weights beside it.
        parity: of its vectors with the model's in float32.
        answers: nearest neighbours; None where only one tower was exported.
        in_float: of a file in 8 bits, layers that were given back to float to keep what was asked for.
    """

    file: str
    bytes: int
    parity: Parity
    answers: Answers | None
    in_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportReport:
    """An export.

    Args:
        source: the model folder.
        precision: of the weights.
        opset: of the ONNX files.
        samples: what it was judged on.
        towers: by name.
    """

    source: str
    precision: str
    opset: int
    samples: str
    towers: dict[str, TowerReport]


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def write_report(folder: Path, settings: ExportSettings, report: ExportReport) -> None:
    """Write both files."""
    write_json(folder / SETTINGS, {"format": FORMAT, **asdict(settings)})
    content: dict[str, Any] = {**asdict(report), "libraries": versions()}
    write_json(folder / REPORT, content)
