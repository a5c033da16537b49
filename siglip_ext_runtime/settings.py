"""`export.json`: what a runtime must know of an exported folder, beside the files themselves."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


SETTINGS = "export.json"
FORMAT = 1


@dataclass(frozen=True)
class ExportSettings:
    """An exported model.

    Args:
        files: of each tower ("vision_model", "text_model", "model"), its file in the folder.
        precision: "fp32", "fp16", "int8" or "int8-static".
        logit_scale: the logarithm, as checkpoints have it; None for an image tower alone.
        logit_bias: None where there is none.
        loss_type: "sigmoid" or "softmax": what makes probabilities of logits.
        pad_token_id: of a text tower that takes a mask, the id that is none of a text's tokens.
        vocabulary: the number of tokens; None where that is not known.
        source: the folder or repository that was exported.
        runtime: what a runtime must be told, because the files do not say it, by backend.
    """

    files: dict[str, str]
    precision: str
    logit_scale: float | None = None
    logit_bias: float | None = None
    loss_type: str = "sigmoid"
    pad_token_id: int | None = None
    vocabulary: int | None = None
    source: str = ""
    runtime: dict[str, dict[str, str]] | None = None


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return (Path(folder) / SETTINGS).is_file()


def read_settings(folder: str | Path) -> ExportSettings:
    """
    Raises:
        FileNotFoundError: no such folder, or none that an export wrote.
        ValueError: its `export.json` is damaged, or of a later version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist or is not a folder")
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SETTINGS}: export a model with siglip-ext-convert to-onnx first")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}, and this version reads {FORMAT}")
        known = {one.name for one in fields(ExportSettings)}
        settings = ExportSettings(**{name: value for name, value in content.items() if name in known})
        missing = [name for name in settings.files.values() if not (folder / name).is_file()]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): export the model again") from error
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: export the model again")
    return settings
