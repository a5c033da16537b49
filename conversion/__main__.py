"""The command `siglip-ext-convert`. Every command is a module with `register`; a new one is a line in COMMANDS."""

import sys

from modeling_siglip_ext import command_line

from .commands import (
    export,
    from_jax,
    from_open_clip,
    inspect_checkpoint,
    list_catalogue,
    publish,
    to_jax,
    to_open_clip,
    verify,
)
from .errors import VerificationError


PROG = "siglip-ext-convert"
COMMANDS = (
    list_catalogue,
    inspect_checkpoint,
    from_jax,
    to_jax,
    from_open_clip,
    to_open_clip,
    export,
    verify,
    publish,
)
EXAMPLES = """examples:
  siglip-ext-convert list
  siglip-ext-convert inspect webli_en_b16_256_60500360.npz
  siglip-ext-convert from-jax webli_en_b16_256_60500360.npz siglip-b16-256
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz
  siglip-ext-convert to-jax siglip-b16-256 back.npz
  siglip-ext-convert to-onnx siglip-b16-256 siglip-b16-256-onnx
  siglip-ext-convert publish siglip-b16-256 user/siglip-b16-256 --dry_run

exit status: 0 for a verified result, 1 for one that differs from its source, 2 for bad input
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    description = "Convert checkpoints of SigLIP models, prove the result, and publish it."
    try:
        return command_line.main(command_line.command_line(PROG, description, COMMANDS, EXAMPLES), argv)
    except VerificationError as error:
        return command_line.say(PROG, f"not verified: {error}", status=1)


if __name__ == "__main__":
    sys.exit(main())
