"""Opens a model folder that is to be converted or verified: stock form, ours, from here or from elsewhere."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from modeling_siglip_ext.hub.facts import CONFIGS

from ..containers.arrays import LazyArray
from ..containers.damage import read_mapping
from ..containers.safetensors_files import read_safetensors
from ..errors import CheckpointError
from ..plan import AnyConfig
from .report import ConversionReport, read_report


@dataclass(frozen=True)
class ModelFolder:
    """A folder for from_pretrained: its configuration in our form, its tensors, and its report if it has one."""

    path: Path
    config: AnyConfig
    tensors: dict[str, LazyArray]
    report: ConversionReport | None


def open_folder(path: str | Path) -> ModelFolder:
    """
    Raises:
        FileNotFoundError: No such folder.
        CheckpointError: Not a folder of a SigLIP model, or a damaged one.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist or is not a folder")
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no config.json: not a model folder")
    model_type = read_mapping(file).get("model_type")
    if model_type is None:
        raise CheckpointError(f"{file} is damaged: it has no model_type")
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise CheckpointError(f"{file}: {model_type!r} is no SigLIP model; this converts {', '.join(CONFIGS)}")
    try:
        config = CONFIGS[model_type].from_pretrained(path)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} describes no model: {error}") from error
    return ModelFolder(path, config, read_safetensors(path), read_report(path))
