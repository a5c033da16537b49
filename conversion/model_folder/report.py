"""`conversion_report.json`: what a folder was made from, and how closely it agrees with that."""

from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any

from modeling_siglip_ext.files import write_json

from ..containers.damage import read_mapping
from ..errors import CheckpointError


NAME = "conversion_report.json"
LIBRARIES = ("siglip-ext", "torch", "transformers", "safetensors", "numpy")


def libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


@dataclass(frozen=True)
class Origin:
    """The file or folder that was converted."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ConversionReport:
    """What is known of a converted folder; fields keep their defaults where a folder came without a report.

    Args:
        source: What it was made from.
        class_name: The class that `AutoModel` makes of it.
        format: "native" for the stock form, or "ext".
        dtype: Of the tensors.
        loss: That the model was trained with; None for an image tower.
        parameters: Their number.
        tokenizer: Whether one was written; None for an image tower.
        catalogue: The released file that the source is.
        licence: Of the weights.
        layout: How the source's arrays were called and stored, for the way back.
        changes: What was resized, in words.
        left_out: Arrays of the source that the model has no place for, by what they are.
        nonfinite: Tensors with NaN or infinite values.
        verified: Whether every tensor was compared with its source.
        files: SHA-256 of the weight files.
        tensors: The largest difference of each tensor from its source.
        outputs: The largest difference of what the model computes from recorded outputs.
        libraries: Versions.
    """

    source: Origin | None = None
    class_name: str | None = None
    format: str | None = None
    dtype: str | None = None
    loss: str | None = None
    parameters: int = 0
    tokenizer: bool | None = None
    catalogue: str | None = None
    licence: str | None = None
    layout: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)
    verified: bool = False
    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=libraries)

    @property
    def largest_difference(self) -> float:
        """Of all tensors."""
        return max(self.tensors.values(), default=0.0)


def write_report(folder: Path, report: ConversionReport) -> None:
    """Write the report; of a folder that came without one, only what was measured since."""
    content = {"source": None, "class": report.class_name, **asdict(report)}
    content["largest_difference"] = report.largest_difference
    content["tensors"] = {name: {"largest_difference": value} for name, value in report.tensors.items()}
    absent = {"class_name"} if report.outputs else {"class_name", "outputs"}
    if not report.tensors:
        absent |= content.keys() - {"outputs", "libraries"}
    write_json(folder / NAME, {key: value for key, value in content.items() if key not in absent})


def read_report(folder: Path) -> ConversionReport | None:
    """The report of a folder, None where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    content = read_mapping(path)
    if not isinstance(content.get("layout", {}), dict):  # of another origin
        content["layout"] = {}
    try:
        content["class_name"] = content.get("class")
        if content.get("source") is not None:
            content["source"] = Origin(content["source"]["name"], content["source"]["sha256"])
        content["tensors"] = {
            name: float(found["largest_difference"]) for name, found in content.get("tensors", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    usual = ConversionReport()
    known = {key: value for key, value in content.items() if key in {entry.name for entry in fields(usual)}}
    damaged = [key for key, value in known.items() if not isinstance(value, kinds(getattr(usual, key), key))]
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)}")
    return ConversionReport(**known)


def kinds(usual: object, key: str) -> tuple[type, ...]:
    """The types that a field may have."""
    if usual is not None:
        return (type(usual),)
    return (NoneType, {"source": Origin, "tokenizer": bool}.get(key, str))
