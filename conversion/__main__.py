"""The command `siglip-ext-convert`. Every command is a module with `register`; a new one is a line in COMMANDS."""

import argparse
import errno
import sys

from .commands import from_jax, from_open_clip, publish, to_jax, to_open_clip, verify
from .commands import inspect_checkpoint as inspection
from .commands import list_catalogue as listing
from .errors import VerificationError


COMMANDS = (listing, inspection, from_jax, to_jax, from_open_clip, to_open_clip, verify, publish)
EXAMPLES = """examples:
  siglip-ext-convert list
  siglip-ext-convert inspect webli_en_b16_256_60500360.npz
  siglip-ext-convert from-jax webli_en_b16_256_60500360.npz siglip-b16-256
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz
  siglip-ext-convert to-jax siglip-b16-256 back.npz
  siglip-ext-convert publish siglip-b16-256 user/siglip-b16-256 --dry-run

exit status: 0 for a verified result, 1 for one that differs from its source, 2 for bad input
"""
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="siglip-ext-convert",
        description="Convert checkpoints of SigLIP models, prove the result, and publish it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        module.register(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except VerificationError as error:
        print(f"siglip-ext-convert: not verified: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = DISK.get(error.errno)
        print(f"siglip-ext-convert: {error if what is None else f'{what}: {error}'}", file=sys.stderr)
        return 2
    except ValueError as error:  # CheckpointError, and what configurations say about impossible sizes
        print(f"siglip-ext-convert: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
