"""`to-open-clip`: a model folder to one that open_clip loads (`local-dir:` or after uploading `hf-hub:`)."""

import argparse
import sys

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..model_folder.folder import open_folder
from ..open_clip.export import to_open_clip
from .arguments import outward_arguments


EXAMPLES = """examples:
  siglip-ext-convert to-open-clip my-siglip my-siglip-open-clip
  python -c "import open_clip; open_clip.create_model('local-dir:my-siglip-open-clip')"
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "to-open-clip",
        run,
        summary="a model folder to one for open_clip",
        description="Write a model of two SigLIP towers in open_clip's names, with its tokenizer and "
        "open_clip_config.json. Where open_clip is installed, its own embeddings and tokens are compared.",
        examples=EXAMPLES,
    )
    outward_arguments(parser, "the folder")
    parser.add_argument("--timm_model", help="timm's name for the image tower, where it is none of the SigLIP ones")
    parser.add_argument(
        "--repo_id",
        metavar="USER/NAME",
        help="where the folder will be on the Hub, for hf-hub:USER/NAME; unless given, it is for local-dir: and stays "
        "where it is",
    )


def run(arguments: argparse.Namespace) -> None:
    exported = to_open_clip(
        open_folder(arguments.folder),
        arguments.out,
        dtype=arguments.dtype,
        timm_model=arguments.timm_model,
        repo_id=arguments.repo_id,
        allow_nonfinite=arguments.allow_nonfinite,
    )
    for remark in exported.remarks:
        print(f"note: {remark}", file=sys.stderr)
    outputs = (
        ""
        if exported.difference is None
        else (f"; open_clip's own embeddings equal, largest difference {exported.difference:.1g}")
    )
    print(f"{arguments.out}: {exported.tensors} tensors, each verified against {arguments.folder}{outputs}")
