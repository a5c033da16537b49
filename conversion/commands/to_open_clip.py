"""`to-open-clip`: a model folder to one that open_clip loads (`local-dir:` or after uploading `hf-hub:`)."""

import argparse
import json
from pathlib import Path

from tqdm.auto import tqdm

from modeling_siglip_ext.files import new_folder

from ..containers.arrays import DTYPES
from ..containers.safetensors_files import SafetensorsWriter, read_safetensors
from ..errors import CheckpointError
from ..model_folder.folder import ModelFolder, open_folder
from ..name_map import array_shapes, pieces_by_array
from ..open_clip.names import CONFIG, WEIGHTS, open_clip_config, open_clip_rules
from ..transfer import compare_back, mapped_back
from .arguments import add_command, outward_arguments


EXAMPLES = """examples:
  siglip-ext-convert to-open-clip my-siglip my-siglip-open-clip
  python -c "import open_clip; open_clip.create_model('local-dir:my-siglip-open-clip')"
"""
INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def interpolation_of(folder: Path) -> str:
    """How the folder's image processor resizes."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if path.is_file():
            settings = json.loads(path.read_text())
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
    with new_folder(out) as draft:
        with SafetensorsWriter(draft, shapes, stored, filename=WEIGHTS) as writer:
            for name in tqdm(pieces, desc="converting", unit="tensor"):
                blocks = mapped_back(folder.tensors, pieces[name], allow_nonfinite=allow_nonfinite)
                for number, block in enumerate(blocks):
                    writer.write(name, block, number, len(pieces[name]))
        (draft / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        compare_back(folder.tensors, read_safetensors(draft / WEIGHTS), pieces)
    return len(pieces)


def register(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "to-open-clip",
        run,
        summary="a model folder to one for open_clip",
        description="Write a model of two SigLIP towers in open_clip's names, with open_clip_config.json.",
        examples=EXAMPLES,
    )
    outward_arguments(parser, "the folder")
    parser.add_argument("--timm-model", help="timm's name for the image tower, where it is none of the SigLIP ones")


def run(arguments: argparse.Namespace) -> int:
    count = to_open_clip(
        open_folder(arguments.folder),
        arguments.out,
        dtype=arguments.dtype,
        timm_model=arguments.timm_model,
        allow_nonfinite=arguments.allow_nonfinite,
    )
    print(f"{arguments.out}: {count} tensors, each verified against {arguments.folder}")
    return 0
