"""`from-open-clip`: a SigLIP checkpoint of open_clip to a folder that `from_pretrained` loads."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..open_clip.towers import TIMM_ACTIVATIONS
from .arguments import convert_to_folder, folder_arguments


EXAMPLES = """examples:
  siglip-ext-convert from-open-clip ViT-B-16-SigLIP/open_clip_model.safetensors siglip-b16
  siglip-ext-convert from-open-clip hf://timm/ViT-SO400M-14-SigLIP-384 siglip-so400m
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "from-open-clip",
        run,
        summary="a SigLIP checkpoint of open_clip to a folder for from_pretrained",
        description="Convert and verify a CustomTextCLIP with a timm SigLIP tower. open_clip_config.json beside the "
        "weights is read if it is there; open_clip itself is not needed.",
        examples=EXAMPLES,
    )
    parser.add_argument("--image_heads", type=int, help="attention heads of an image tower of unusual width")
    parser.add_argument("--text_heads", type=int, help="attention heads of a text tower of unusual width")
    parser.add_argument(
        "--image_act",
        choices=sorted(TIMM_ACTIVATIONS),
        help="activation of an image tower that timm names and nothing here knows",
    )
    folder_arguments(parser, "a .safetensors file, or the folder with open_clip_model.safetensors")


def run(arguments: argparse.Namespace) -> None:
    convert_to_folder(arguments, "open_clip")
