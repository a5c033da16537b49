"""`publish`: a model folder to the Hub, in one commit."""

import argparse
import sys

from modeling_siglip_ext.command_line import Subparsers, add_command, say
from modeling_siglip_ext.hub.calls import PublishError
from modeling_siglip_ext.hub.publish import publish


EXAMPLES = """examples:
  siglip-ext-convert publish siglip-b16-256 user/siglip-b16-256 --dry_run
  siglip-ext-convert publish siglip-b16-256 user/siglip-b16-256 --private

The token is that of `hf auth login`, or HF_TOKEN; another address than the Hub's is HF_ENDPOINT. An upload that was
cut goes on where it was when the command is given again.
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "publish",
        run,
        summary="a model folder to the Hub",
        description="Push a model folder to the Hub in one commit: weights, settings, card; never optimiser state.",
        examples=EXAMPLES,
    )
    parser.add_argument("folder", help="a folder with a model, its processor and its card")
    parser.add_argument("repo_id", help="USER/NAME on the Hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="list what would be pushed, and send nothing")
    parser.add_argument("--overwrite", action="store_true", help="also over files whose card siglip-ext did not write")
    parser.add_argument("--revision", help="branch; main unless given")
    parser.add_argument("--message", default="Upload of siglip-ext", help="of the commit")


def run(arguments: argparse.Namespace) -> int:
    try:
        publish(
            arguments.folder,
            arguments.repo_id,
            private=arguments.private or None,
            overwrite=arguments.overwrite,
            dry_run=arguments.dry_run,
            message=arguments.message,
            revision=arguments.revision,
        )
    except PublishError as error:
        print(file=sys.stderr)  # a bar of huggingface_hub may have been left in the middle of a line
        return say("siglip-ext-convert", f"not published: {error}")
    return 0
