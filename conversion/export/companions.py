"""What a runtime needs beside the weights: configuration, preprocessing, tokenizer, under the names it looks for."""

import shutil
from pathlib import Path
from typing import Any

from modeling_siglip_ext.files import write_json

from ..containers.damage import read_mapping
from ..errors import CheckpointError
from ..model_folder.processor import BESIDE_VOCABULARY, VOCABULARIES, has_tokenizer, load_tokenizer
from .sentencepiece_json import tokenizer_json


CONFIG, PROCESSOR, PREPROCESSOR = "config.json", "processor_config.json", "preprocessor_config.json"
TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "spiece.model"
COPIED = (CONFIG, PROCESSOR, *VOCABULARIES, *BESIDE_VOCABULARY, "LICENSE")


def image_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder's image processor, from the file that transformers takes them from.

    Raises:
        CheckpointError: it has none.
    """
    if (folder / PROCESSOR).is_file():
        settings = read_mapping(folder / PROCESSOR)
        if "image_processor" in settings:
            return settings["image_processor"]
    if (folder / PREPROCESSOR).is_file():
        return read_mapping(folder / PREPROCESSOR)
    raise CheckpointError(f"{folder} has no {PROCESSOR}: save the model's processor there")


def check_tokenizer(folder: Path) -> None:
    """
    Raises:
        CheckpointError: settings of a tokenizer stand there, and it cannot be loaded, as its vocabulary is missing.
    """
    if (folder / TOKENIZER_CONFIG).is_file() and not has_tokenizer(folder):
        load_tokenizer(folder, local_only=True)


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
