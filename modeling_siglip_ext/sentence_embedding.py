"""Settings that sentence-transformers reads from a model's folder.

By default it pads texts to the longest of the batch, which gives wrong vectors here, and does not normalise.
"""

import os
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from .files import write_json


MODULES_FILE, SETTINGS_FILE = "modules.json", "sentence_bert_config.json"
PACKAGE = "sentence_transformers.base.modules"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{PACKAGE}.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{PACKAGE}.normalize.Normalize"},
]


def settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of its transformer module: which methods embed, and for SigLIP texts their full length."""
    found: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"}
            for kind in ("text", "image")
        },
        "module_output_name": "sentence_embedding",
    }
    text = config.text_config
    if "siglip" in text.model_type:  # towers from elsewhere take a mask and any padding
        padding = {"padding": "max_length", "max_length": text.max_position_embeddings, "truncation": True}
        found["processing_kwargs"] = {"text": padding}
    if getattr(config.vision_config, "naflex", False):  # the stock processor insists on 16 otherwise
        found.setdefault("processing_kwargs", {})["image"] = {"patch_size": config.vision_config.patch_size}
    return found


def save_settings(config: PreTrainedConfig, folder: str | os.PathLike) -> None:
    """Write both files into the folder of a dual model, made if it is missing."""
    write_json(Path(folder) / MODULES_FILE, MODULES)
    write_json(Path(folder) / SETTINGS_FILE, settings(config))
