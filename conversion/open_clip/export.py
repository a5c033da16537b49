"""A model folder as one that open_clip loads."""

from pathlib import Path

from tqdm.auto import tqdm

from modeling_siglip_ext.files import new_folder, write_json

from ..containers.arrays import DTYPES
from ..containers.damage import read_mapping
from ..containers.safetensors_files import SafetensorsWriter, read_safetensors
from ..errors import CheckpointError
from ..model_folder.folder import ModelFolder
from ..name_map import array_shapes, pieces_by_array
from ..transfer import compare_back, mapped_back
from .checkpoint import WEIGHTS
from .config import CONFIG, open_clip_config
from .names import open_clip_rules


INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def interpolation_of(folder: Path) -> str:
    """How the folder's image processor resizes."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if path.is_file():
            settings = read_mapping(path)
            return INTERPOLATION.get(settings.get("image_processor", settings).get("resample"), "bilinear")
    return "bilinear"


def to_open_clip(
    folder: ModelFolder,
    out: str | Path,
    *,
    dtype: str | None = None,
    timm_model: str | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Write weights and configuration for open_clip; returns the number of tensors, each verified.

    Args:
        dtype: Of all tensors; None keeps the folder's.
        timm_model: timm's name for the image tower; None finds it.

    Raises:
        FileExistsError: `out` exists.
        CheckpointError: open_clip cannot build this model, or values are not finite.
        VerificationError: The result differs from the folder.
    """
    table = open_clip_rules(folder.config)
    settings = open_clip_config(folder.config, timm_model, interpolation_of(folder.path))
    names = {rule.torch_name for rule in table}
    if names != set(folder.tensors):
        raise CheckpointError(f"{folder.path}: no place for {', '.join(sorted(names ^ set(folder.tensors))[:5])}")
    shapes = array_shapes(table, {name: folder.tensors[name].shape for name in names})
    pieces = pieces_by_array(table)
    stored = DTYPES[dtype] if dtype else next(iter(folder.tensors.values())).dtype
    if stored is None:
        raise CheckpointError(f"{folder.path}: its tensors are of a type that no weights have; give --dtype")
    with new_folder(out) as draft:
        with SafetensorsWriter(draft, shapes, stored, filename=WEIGHTS) as writer:
            for name in tqdm(pieces, desc="converting", unit="tensor"):
                blocks = mapped_back(folder.tensors, pieces[name], allow_nonfinite=allow_nonfinite)
                for number, block in enumerate(blocks):
                    writer.write(name, block, number, len(pieces[name]))
        write_json(draft / CONFIG, settings)
        compare_back(folder.tensors, read_safetensors(draft / WEIGHTS), pieces)
    return len(pieces)
