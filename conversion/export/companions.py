"""What a runtime needs beside the weights: configuration, preprocessing, tokenizer, under the names it looks for."""

import shutil
from pathlib import Path
from typing import Any

from modeling_siglip_ext.files import write_json

from ..containers.damage import read_mapping
from ..errors import CheckpointError
from ..model_folder.processor import BESIDE_VOCABULARY, VOCABULARIES
from ..resize import AnyConfig
from .sentencepiece_json import tokenizer_json
from .towers import vision_of


CONFIG, PROCESSOR, PREPROCESSOR = "config.json", "processor_config.json", "preprocessor_config.json"
TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "spiece.model"
COPIED = (CONFIG, PROCESSOR, *VOCABULARIES, *BESIDE_VOCABULARY, "LICENSE")


def image_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder's image processor.

    Raises:
        CheckpointError: it has none.
    """
    for name in (PREPROCESSOR, PROCESSOR):
        if (folder / name).is_file():
            settings = read_mapping(folder / name)
            return settings.get("image_processor", settings)
    raise CheckpointError(f"{folder} has no {PROCESSOR}: save the model's processor there")


def image_size(folder: Path, config: AnyConfig) -> tuple[int, int]:
    """Height and width in pixels of what the image processor makes; of no meaning for NaFlex.

    Raises:
        CheckpointError: its settings do not say, and neither does the configuration.
    """
    vision, settings = vision_of(config), image_settings(folder)
    for key in ("crop_size", "size"):
        size = settings.get(key)
        if isinstance(size, dict) and {"height", "width"} <= set(size):
            return size["height"], size["width"]
    side = getattr(vision, "image_size", None)
    if isinstance(side, int):
        return side, side
    if getattr(vision, "naflex", False):
        return 0, 0
    raise CheckpointError(f"{folder}: neither {PROCESSOR} nor {CONFIG} says how large images are")


def write_companions(folder: Path, out: Path) -> None:
    """Copy them, and write the settings of the image processor also by themselves, for whoever knows no processors."""
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    write_json(out / PREPROCESSOR, image_settings(folder))
    if not (out / TOKENIZER).is_file() and is_sentencepiece(out):
        tokenizer_json(out / SENTENCEPIECE).save(str(out / TOKENIZER))


def is_sentencepiece(folder: Path) -> bool:
    """Whether a folder holds the slow tokenizer of the first SigLIP, which other runtimes cannot read."""
    settings = folder / TOKENIZER_CONFIG
    if not (folder / SENTENCEPIECE).is_file() or not settings.is_file():
        return False
    return read_mapping(settings).get("tokenizer_class") == "SiglipTokenizer"
