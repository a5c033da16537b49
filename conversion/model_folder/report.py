"""`conversion_report.json`: what a folder was made from, and how closely it agrees with that."""

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


NAME = "conversion_report.json"
LIBRARIES = ("siglip-ext", "torch", "transformers", "safetensors", "numpy")


def libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def write_report(folder: Path, report: dict[str, Any]) -> None:
    draft = folder / f"{NAME}.part"
    draft.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(draft, folder / NAME)


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of a folder, None where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(report, dict):
        raise CheckpointError(f"{path} is damaged: it holds no mapping")
    return report
