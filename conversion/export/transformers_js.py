"""The layout that transformers.js looks for: files by type in `onnx/`, and settings that its own code reads alike.

Its image code (sharp) does not smooth when it shrinks by bicubic interpolation, which costs more than any 8 bits: a
cosine of 0.954 instead of 0.9996 with Lanczos. So `preprocessor_config.json`, which it reads, says Lanczos, and
`processor_config.json`, which Python reads first, what the model was trained with.
"""

import shutil
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig, native_config
from modeling_siglip_ext.configuration_siglip_ext import is_foreign
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.stock import stock_family

from ..containers.damage import read_mapping
from ..errors import CheckpointError
from ..resize import AnyConfig
from .companions import CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG
from .onnx_file import EXTERNAL_SUFFIX


FOLDER = "onnx"
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized", "int8-static": "_quantized"}
LANCZOS = 1


def check_layout(config: AnyConfig) -> None:
    """
    Raises:
        CheckpointError: transformers.js has no code for such a model.
    """
    if not isinstance(config, SiglipExtConfig):
        reason = "knows SigLIP's image tower beside a text tower alone"
    elif getattr(config.vision_config, "naflex", False):
        reason = "cannot cut images into NaFlex's patches"
    elif is_foreign(config.vision_config) or is_foreign(config.text_config):
        reason = "gives SigLIP models texts without a mask, and towers from elsewhere need one"
    elif config.loss_type != "sigmoid":
        reason = f"shows the scores of a SigLIP model as sigmoids, and this one was trained with {config.loss_type}"
    else:
        return
    raise CheckpointError(f"transformers.js {reason}: export with --layout plain, for ONNX Runtime")


def arrange(folder: Path, files: dict[str, str], config: AnyConfig, precision: str) -> dict[str, str]:
    """Bring an exported folder, with its companions, into the layout.

    Args:
        files: of each tower, its file in the folder.

    Returns:
        The files as they are called now.
    """
    (folder / FOLDER).mkdir()
    moved, external = {}, {}
    for name, file in files.items():
        path = folder / FOLDER / f"{name}{SUFFIXES[precision]}.onnx"
        move(folder / file, path, external)
        moved[name] = path.relative_to(folder).as_posix()
    write_config(folder, config, external)
    write_image_settings(folder)
    if (folder / TOKENIZER_CONFIG).is_file():
        write_tokenizer(folder)
    return moved


def move(source: Path, path: Path, external: dict[str, int]) -> None:
    """Move a file, and the weights beside it, of which the file itself keeps the name."""
    weights = source.with_name(source.name + EXTERNAL_SUFFIX)
    if not weights.is_file():
        source.rename(path)
        return
    import onnx

    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = path.name + EXTERNAL_SUFFIX
    path.write_bytes(model.SerializeToString())
    source.unlink()
    shutil.move(weights, path.with_name(path.name + EXTERNAL_SUFFIX))
    external[path.name] = 1


def write_config(folder: Path, config: AnyConfig, external: dict[str, int]) -> None:
    """As of a stock SigLIP model: it chooses classes by the type, and computes nothing with the rest."""
    found = read_mapping(folder / CONFIG)
    if stock_family(found.get("model_type", "")) is None:
        found = (native_config(config) or config).to_dict() | {"model_type": "siglip"}
        found = {name: value for name, value in found.items() if name not in ("auto_map", "custom_pipelines")}
    runtime: dict[str, Any] = {"transformers.js_config": {"use_external_data_format": external}} if external else {}
    write_json(folder / CONFIG, found | runtime)


def write_image_settings(folder: Path) -> None:
    """Lanczos for transformers.js; Python finds the model's own where it looks first, also where the folder had none
    there, as most of the released ones have none."""
    settings = read_mapping(folder / PREPROCESSOR)
    processor = read_mapping(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    write_json(folder / PROCESSOR, {"image_processor": settings} | processor)
    write_json(folder / PREPROCESSOR, settings | {"resample": LANCZOS})


def write_tokenizer(folder: Path) -> None:
    """The name of a fast tokenizer's class that all versions of transformers and transformers.js know, and lower case
    that both understand alike."""
    settings = read_mapping(folder / TOKENIZER_CONFIG)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        write_json(folder / TOKENIZER_CONFIG, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    if (folder / TOKENIZER).is_file():
        content = read_mapping(folder / TOKENIZER)
        content["normalizer"] = with_sigma(content.get("normalizer"))
        write_json(folder / TOKENIZER, content)


def with_sigma(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """JavaScript makes ς of a Σ at the end of a word, tokenizers σ of each: they get none to make lower case of."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        return normalizer | {"normalizers": [with_sigma(step) for step in normalizer["normalizers"]]}
    if normalizer["type"] != "Lowercase":
        return normalizer
    sigma = {"type": "Replace", "pattern": {"String": "Σ"}, "content": "σ"}
    return {"type": "Sequence", "normalizers": [sigma, normalizer]}
