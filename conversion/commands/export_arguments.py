"""Options of the commands that export to other runtimes, and what they print."""

import argparse

from modeling_siglip_ext.command_line import refuse_unused
from modeling_siglip_ext.inputs import files_below

from ..export.export import ExportOptions
from ..export.precisions import FORMATS
from ..export.report import ExportReport
from ..export.towers import DUAL, TEXT, VISION
from .export_figures import evaluation_of


TOWERS = {
    "both": (VISION, TEXT),
    "image": (VISION,),
    "text": (TEXT,),
    "dual": (DUAL,),
    "all": (VISION, TEXT, DUAL),
}


def export_arguments(parser: argparse.ArgumentParser, form: str) -> None:
    """
    Args:
        form: of the files, a key of `FORMATS`.
    """
    parser.set_defaults(format=form)
    parser.add_argument("folder", help="a model folder, in stock form or ours")
    parser.add_argument("out", help="the folder to write; must not exist")
    parser.add_argument(
        "--towers",
        choices=tuple(TOWERS),
        default="both",
        help="both: a file each; dual: one file of both, with their logits; all: the three of them",
    )
    parser.add_argument("--precision", choices=tuple(FORMATS[form]), default="fp32", help="of the weights")
    group = parser.add_argument_group("how near it must be; below that nothing is written and the exit status is 1")
    group.add_argument(
        "--min_cosine",
        type=float,
        help="between a vector and its float32 one, the least of all (default: 0.9999 in 8 bits on --images and "
        "--texts, otherwise none)",
    )
    group.add_argument("--min_agreement", type=float, help="share of inputs with the same nearest neighbour")
    group = parser.add_argument_group(
        "what it is judged on, and int8 calibrated (default: pictures drawn here, and captions of them)"
    )
    group.add_argument("--images", metavar="FOLDER", help="images like those of its use")
    group.add_argument("--texts", metavar="FILE", help="texts like those of its use, one a line")
    group = parser.add_argument_group("recall or accuracy before and after, for the report")
    group.add_argument("--dataset", help="with captions, or with labels and classes: name on the Hub, file or folder")
    group.add_argument("--limit", type=int, metavar="N", help="only the first rows")


def export_options(arguments: argparse.Namespace) -> ExportOptions:
    if arguments.dataset is None:
        refuse_unused(arguments, ["limit"], "without --dataset")
    return ExportOptions(
        towers=TOWERS[arguments.towers],
        format=arguments.format,
        precision=arguments.precision,
        layout=getattr(arguments, "layout", "plain"),
        min_cosine=arguments.min_cosine,
        min_agreement=arguments.min_agreement,
        images=None if arguments.images is None else files_below(arguments.images, "image"),
        texts=None if arguments.texts is None else text_lines(arguments.texts),
        evaluate=None if arguments.dataset is None else evaluation_of(arguments.dataset, arguments.limit),
    )


def text_lines(file: str) -> list[str]:
    """
    Raises:
        ValueError: no text, or none in UTF-8.
    """
    with open(file, encoding="utf-8") as opened:
        try:
            lines = [line.strip() for line in opened]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text in UTF-8: {error}") from error
    if not any(lines):
        raise ValueError(f"{file} holds no text")
    return [line for line in lines if line]


def print_report(out: str, report: ExportReport) -> None:
    for name, tower in report.towers.items():
        parity, answers = tower.parity, tower.answers
        equal = "" if answers is None else f", {answers.least:.1%} equal answers"
        print(
            f"{name}: {tower.bytes / 1e6:.1f} MB, least cosine {parity.cosine_least:.7f}, largest difference "
            f"{parity.largest_difference:.2g}{equal}"
        )
    for name, (before, after) in report.figures.items():
        print(f"{name:40s} {before:.4f} before, {after:.4f} after")
    print(f"{out}: {report.precision}, judged on inputs {report.samples}")
