"""What the commands have in common: how one is registered, and the options that several of them take."""

import argparse
from collections.abc import Callable

from ..big_vision.config import Choices
from ..containers.arrays import DTYPES


Run = Callable[[argparse.Namespace], int]


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Run, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A new command; its parser, to be given arguments."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def choices_arguments(parser: argparse.ArgumentParser) -> None:
    """What names and shapes of a checkpoint do not tell."""
    group = parser.add_argument_group("what a checkpoint outside the catalogue cannot tell")
    group.add_argument("--image-pooling", help="map, mean, max, first, cls or none")
    group.add_argument("--text-pooling", help="last, first, mean, max or map")
    group.add_argument("--text-heads", type=int, help="attention heads of a BERT text tower of unusual width")


def choices(arguments: argparse.Namespace) -> Choices:
    return Choices(arguments.image_size, arguments.image_pooling, arguments.text_pooling, arguments.text_heads)


def outward_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Of the commands that turn a model folder into another format."""
    parser.add_argument("folder", help="a model folder, in stock form or ours")
    parser.add_argument("out", help=f"{out} to write; must not exist")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of all arrays (default: what each one had)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="convert NaN and infinite values as they are")
