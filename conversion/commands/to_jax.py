"""`to-jax`: a model folder to an `.npz` that big_vision loads."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..big_vision.export import to_jax
from ..errors import CheckpointError
from ..model_folder.folder import open_folder
from .arguments import outward_arguments


EXAMPLES = """examples:
  siglip-ext-convert to-jax siglip-b16-256 back.npz
  siglip-ext-convert to-jax my-fine-tuned-siglip my-siglip.npz --dtype bfloat16
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "to-jax",
        run,
        summary="a model folder to an .npz for big_vision",
        description="Write a model folder as an .npz that big_vision loads. A folder that from-jax made comes back "
        "with the names, stacking and types it had.",
        examples=EXAMPLES,
    )
    outward_arguments(parser, "the .npz file")


def run(arguments: argparse.Namespace) -> None:
    if not arguments.out.endswith(".npz"):
        raise CheckpointError(f"{arguments.out} must end in .npz: big_vision goes by that")
    folder = open_folder(arguments.folder)
    count = to_jax(folder, arguments.out, dtype=arguments.dtype, allow_nonfinite=arguments.allow_nonfinite)
    if getattr(folder.config, "loss_type", None) == "softmax" and folder.config.logit_bias_init is not None:
        print(
            "note: the softmax loss is not written in an .npz: with its bias this model comes back as one of sigmoid"
        )
    print(f"{arguments.out}: {count} arrays, each verified against {arguments.folder}")
