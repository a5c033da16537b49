"""`from-open-clip`: a SigLIP checkpoint of open_clip to a folder that `from_pretrained` loads."""

import argparse
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig

from ..containers.remote import local
from ..containers.sources import Source, open_source
from ..convert import Result, convert
from ..errors import CheckpointError
from ..open_clip.names import describe_open_clip, is_open_clip, plan_open_clip, read_config
from ..released.catalogue import tokenizers
from .arguments import add_command
from .output import folder_arguments, folder_options, print_result


EXAMPLES = """examples:
  siglip-ext-convert from-open-clip ViT-B-16-SigLIP/open_clip_model.safetensors siglip-b16
  siglip-ext-convert from-open-clip hf://timm/ViT-SO400M-14-SigLIP-384 siglip-so400m
"""


def register(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "from-open-clip",
        run,
        summary="a SigLIP checkpoint of open_clip to a folder for from_pretrained",
        description="Convert and verify a CustomTextCLIP with a timm SigLIP tower. open_clip_config.json beside the "
        "weights is read if it is there; open_clip itself is not needed.",
        examples=EXAMPLES,
    )
    parser.add_argument("checkpoint", help="a .safetensors file, or the folder with open_clip_model.safetensors")
    parser.add_argument("out", help="the folder to write; must not exist")
    parser.add_argument("--image-heads", type=int, help="attention heads of an image tower of unusual width")
    parser.add_argument("--text-heads", type=int, help="attention heads of a text tower of unusual width")
    folder_arguments(parser)


def read_open_clip(
    source: Source, image_heads: int | None = None, text_heads: int | None = None
) -> tuple[SiglipExtConfig, dict[str, Any]]:
    """The configuration of open_clip's model, and its own settings.

    Raises:
        CheckpointError: Not a SigLIP model of open_clip.
    """
    if not is_open_clip(source.arrays):
        raise CheckpointError(f"{source.name} has no visual.trunk: not a CustomTextCLIP with a timm image tower")
    stored = read_config(source.path if source.path.is_dir() else source.path.parent)
    return describe_open_clip(source.arrays, stored, image_heads, text_heads), stored


def from_open_clip(path: Path, arguments: argparse.Namespace) -> Result:
    source = open_source(path)
    config, stored = read_open_clip(source, arguments.image_heads, arguments.text_heads)
    resample = stored.get("preprocess_cfg", {}).get("interpolation", "bicubic")  # open_clip's default
    wanted = next((t for t in tokenizers().values() if t.vocab_size == config.text_config.vocab_size), None)
    return convert(
        source,
        source.arrays,
        lambda target: plan_open_clip(source.arrays, config, target),
        config,
        arguments.out,
        folder_options(arguments, resample if resample in ("bilinear", "bicubic") else "bicubic"),
        tokenizer=wanted,
        facts={"layout": {"kind": "open_clip"}, "changes": []},
    )


def run(arguments: argparse.Namespace) -> int:
    with local(arguments.checkpoint, Path(arguments.out).absolute().parent) as path:
        result = from_open_clip(path, arguments)
    print_result(arguments.out, result)
    return 0
