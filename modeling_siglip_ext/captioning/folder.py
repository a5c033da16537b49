"""A decoder by itself on disk: `decoder.safetensors` and `decoder.json` in a folder that appears whole or not at all.

The image tower it reads from is saved apart, in stock form.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..files import new_folder, read_json, write_json
from ..loading import some
from .configuration import CaptionDecoderConfig
from .decoder import CaptionDecoder
from .texts import TextFormat


WEIGHTS, CONFIG = "decoder.safetensors", "decoder.json"
REMEDY = "give a folder that save_decoder wrote"


def save_decoder(decoder: CaptionDecoder, folder: str | Path) -> None:
    """Write a decoder into a new folder.

    Raises:
        FileExistsError: the folder exists.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in decoder.state_dict().items()}
    with new_folder(folder) as draft:
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        write_json(draft / CONFIG, config_to_json(decoder.config))


def load_decoder(folder: str | Path) -> CaptionDecoder:
    """The decoder of a folder, in eval mode and in the type it was saved in.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the two are not of one decoder.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG, REMEDY)
    try:
        config = config_from_json(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}): {REMEDY}") from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {REMEDY}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error
    with torch.device("meta"):
        decoder = CaptionDecoder(config)
    expected = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    wrong = {name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name]}
    wrong |= expected.keys() ^ tensors.keys()
    if wrong:
        raise ValueError(f"{path} does not fit {CONFIG}: {some(wrong, 5)}; {REMEDY}")
    decoder.load_state_dict(tensors, assign=True)
    return decoder.eval()


def config_to_json(config: CaptionDecoderConfig) -> dict[str, Any]:
    """A configuration in terms of JSON."""
    return asdict(config)


def config_from_json(content: dict[str, Any]) -> CaptionDecoderConfig:
    """The inverse of `config_to_json`.

    Raises:
        TypeError, ValueError: unknown or missing fields, or values that make no decoder.
    """
    unknown = set(content) - {field.name for field in fields(CaptionDecoderConfig)}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    given: dict[str, Any] = {**content, "text_format": TextFormat(**content.get("text_format", {}))}
    return CaptionDecoderConfig(**given)
