"""`from-jax`: a big_vision checkpoint to a folder that `from_pretrained` loads."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..plan import NewSizes
from .arguments import choices_arguments, convert_to_folder, folder_arguments


EXAMPLES = """examples:
  siglip-ext-convert from-jax webli_en_b16_256_60500360.npz siglip-b16-256
  siglip-ext-convert from-jax gs://big_vision/siglip2/siglip2_so400m14_384.npz siglip2-so400m --dtype bfloat16
  siglip-ext-convert from-jax siglip2_b16_256.npz siglip2-b16-384 --image_size 384 --tokenizer gemma/tokenizer.json
  siglip-ext-convert from-jax my_run/checkpoint.bv my-siglip --text_rules v2 --tokenizer my-tokenizer
  siglip-ext-convert from-jax my_softmax_run/checkpoint.npz my-clip --zero_bias
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "from-jax",
        run,
        summary="a big_vision checkpoint to a folder for from_pretrained",
        description="Convert a checkpoint of big_vision, verify every tensor, and write a folder for from_pretrained.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--name", help="which file of the catalogue it is (see `list`), where its own name does not say; or none"
    )
    sizes = parser.add_argument_group("other sizes than the checkpoint's")
    sizes.add_argument("--image_size", type=int, help="pixels; positions are resampled as big_vision does")
    sizes.add_argument("--patch_size", type=int, help="pixels; the kernel is resized as in FlexiViT")
    sizes.add_argument("--text_length", type=int, help="tokens; positions are stretched (fine-tune afterwards)")
    sizes.add_argument("--tower", choices=("fixed", "naflex"), help="image tower for one size, or for any (NaFlex)")
    choices_arguments(parser)
    folder_arguments(parser, "an .npz file or a tensorstore folder; a path or a URL (gs://, https://, hf://)")


def run(arguments: argparse.Namespace) -> None:
    naflex = None if arguments.tower is None else arguments.tower == "naflex"
    sizes = NewSizes(arguments.image_size, arguments.patch_size, arguments.text_length, naflex)
    convert_to_folder(arguments, "big_vision", sizes)
