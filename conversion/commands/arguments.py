"""What several commands have in common: the options that they take, and what they print."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..checkpoint import Choices, choices_of
from ..containers.arrays import DTYPES
from ..converter import FORMATS, Options, Result, convert
from ..errors import CheckpointError
from ..formats import open_checkpoint
from ..plan import AnyConfig, NewSizes


def choices_arguments(parser: argparse.ArgumentParser) -> None:
    """What names and shapes of a checkpoint do not tell."""
    group = parser.add_argument_group("what a checkpoint outside the catalogue cannot tell")
    group.add_argument("--image_pooling", help="map, mean, max, first, cls or none")
    group.add_argument("--text_pooling", help="last, first, mean, max or map")
    group.add_argument(
        "--text_heads", type=int, help="attention heads of a BERT or open_clip text tower of unusual width"
    )


def choices(arguments: argparse.Namespace) -> Choices:
    """The choices that were made, of those that a command offers."""
    return Choices(**{field.name: getattr(arguments, field.name, None) for field in fields(Choices)})


def check_choices(made: Choices, config: AnyConfig, names: Sequence[str]) -> None:
    """Whether the choices were needed and taken.

    Args:
        config: what the checkpoint was read as.
        names: of the choices that count.

    Raises:
        CheckpointError: the checkpoint or the catalogue says otherwise.
    """
    found = choices_of(config)
    for name in names:
        value, actual = getattr(made, name), getattr(found, name)
        if value not in (None, actual):
            says = "" if actual is None else f", which says {actual}"
            raise CheckpointError(f"--{name}={value} has no effect on this checkpoint{says}: leave it out")


def shard_size(text: str) -> str:
    """A size as `save_pretrained` takes it.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return text


def folder_arguments(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """Of the commands that write a model folder; the fields of `Options` among them."""
    parser.add_argument("checkpoint", help=checkpoint)
    parser.add_argument("out", help="the folder to write; must not exist")
    group = parser.add_argument_group("the folder")
    forms = "native: for the stock classes; ext: for ours. Native where possible"
    group.add_argument("--format", dest="form", choices=FORMATS, help=forms)
    group.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the tensors")
    group.add_argument("--max_shard_size", default="5GB", type=shard_size, help="of one file")
    group.add_argument(
        "--tokenizer", help="folder, tokenizer.json, SentencePiece .model or Hub repository; else the local Hub cache"
    )
    group.add_argument(
        "--text_rules",
        dest="rules",
        choices=("v1", "v2", "bert"),
        help="how texts are cut: SigLIP, SigLIP 2, BERT; the catalogue knows for its files",
    )
    group.add_argument(
        "--zero_bias",
        action="store_true",
        help="write a softmax checkpoint, which has no logit bias, in stock form with a bias of 0: logits and softmax "
        "probabilities stay the same, but sigmoid scores, which stock pipelines show, are not calibrated",
    )
    group.add_argument("--allow_nonfinite", action="store_true", help="convert NaN and infinite values as they are")


def outward_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Of the commands that turn a model folder into another format."""
    parser.add_argument("folder", help="a model folder, in stock form or ours")
    parser.add_argument("out", help=f"{out} to write; must not exist")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of all arrays; unless given, what each one had")
    parser.add_argument("--allow_nonfinite", action="store_true", help="convert NaN and infinite values as they are")


def convert_to_folder(arguments: argparse.Namespace, kind: str, sizes: NewSizes | None = None) -> None:
    """What the commands do that write a model folder, and what they print."""
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    scratch, name = Path(arguments.out).absolute().parent, getattr(arguments, "name", None)
    known = choices(arguments)
    with open_checkpoint(arguments.checkpoint, kind=kind, name=name, choices=known, scratch=scratch) as checkpoint:
        # --image_size is another size than the checkpoint's
        check_choices(known, checkpoint.config, ("image_pooling", "text_pooling", "text_heads", "image_heads"))
        result = convert(checkpoint, arguments.out, options, sizes)
    print_result(arguments.out, result)


def print_result(out: str, result: Result) -> None:
    report = result.report
    for what, names in report.left_out.items():
        print(f"left out, {what}: {', '.join(names)}")
    for line in report.changes:
        print(line)
    for name in report.nonfinite:
        print(f"not finite: {name}")
    for remark in result.remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(
        f"{out}: {report.class_name}, {report.parameters:,} parameters, {len(report.tensors)} tensors verified, "
        f"largest difference {report.largest_difference:.3g}"
    )
