"""The command `siglip-ext-convert`."""

import argparse
import sys

from .big_vision import Choices
from .containers import CheckpointError
from .from_jax import FORMATS, LEFT_OUT, convert, left_out_as


EXAMPLES = """examples:
  siglip-ext-convert from-jax webli_en_b16_256_60500360.npz siglip-b16-256
  siglip-ext-convert from-jax webli_en_so400m_384_58765454.npz siglip-so400m-384 --image-size 384
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="siglip-ext-convert", description="Convert checkpoints of SigLIP models.")
    commands = top.add_subparsers(dest="command", required=True)
    from_jax = commands.add_parser(
        "from-jax",
        help="a big_vision checkpoint to a folder for from_pretrained",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from_jax.add_argument("checkpoint", help="the .npz file, or a tensorstore folder")
    from_jax.add_argument("out", help="the folder to write")
    from_jax.add_argument(
        "--image-size", type=int, help="pixels; positions are resampled if the checkpoint's grid is another"
    )
    from_jax.add_argument("--image-pooling", help='where the checkpoint cannot tell: "mean", "max", "first", "none"')
    from_jax.add_argument("--text-pooling", help='where the checkpoint cannot tell: "last", "first", "mean", "max"')
    from_jax.add_argument("--text-heads", type=int, help="attention heads of a BERT text tower of unusual width")
    from_jax.add_argument(
        "--format", choices=FORMATS, help="native: for the stock classes; ext: for ours. Native where possible"
    )
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 for success, 2 for bad input."""
    arguments = parser().parse_args(argv)
    choices = Choices(arguments.image_size, arguments.image_pooling, arguments.text_pooling, arguments.text_heads)
    try:
        converted = convert(arguments.checkpoint, arguments.out, choices, form=arguments.format)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"siglip-ext-convert: {error}", file=sys.stderr)
        return 2
    for key, what in LEFT_OUT.items():
        names = [name for name in converted.left_out if left_out_as(name) == key]
        if names:
            print(f"left out, {what}: {', '.join(names)}")
    print(f"{arguments.out}: {type(converted.model).__name__}, {converted.model.num_parameters():,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
