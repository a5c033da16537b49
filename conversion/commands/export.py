"""`to-onnx`, `to-openvino` and `to-aoti`: a model to files of another runtime, compared with it before."""

import argparse

from modeling_siglip_ext.command_line import Parser, Subparsers, add_command, refuse_unused
from modeling_siglip_ext.inputs import files_below

from ..export.export import LAYOUTS, ExportOptions, export_model
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


DESCRIPTION = (
    "Write a model's towers as {} with free batch sizes, and NaFlex grids, beside what reads their images and texts. "
    "They are run and compared with the model before the folder appears."
)
ONNX_EXAMPLES = """examples:
  siglip-ext-convert to-onnx my-siglip my-siglip-onnx
  siglip-ext-convert to-onnx my-siglip my-siglip-onnx --towers image --precision fp16
  siglip-ext-convert to-onnx my-siglip my-siglip-int8 --precision int8 --images photos --texts captions.txt \\
      --min_cosine 0.9997 --min_agreement 0.98
  siglip-ext-convert to-onnx my-siglip my-siglip-js --layout transformers.js --towers all
  siglip-ext-eval zero-shot --model my-siglip-onnx --backend onnx --benchmark cifar100
"""
OPENVINO_NOTE = (
    " They keep float32 or float16 weights but not in which precision to compute: export.json says float32, and our "
    "runtime follows it; another one computes in bfloat16 where the machine does, unless it is told not to."
)
OPENVINO_EXAMPLES = """examples:
  siglip-ext-convert to-openvino my-siglip my-siglip-openvino
  siglip-ext-convert to-openvino my-siglip my-siglip-int8 --precision int8 --images photos --texts captions.txt
  siglip-ext-eval zero-shot --model my-siglip-openvino --backend openvino --benchmark cifar100
"""
AOTI_NOTE = (
    " They are machine code, and run with the version of torch and the kind of CPU that they were compiled with. "
    "Compiling takes a C++ compiler, running them none."
)
AOTI_EXAMPLES = """examples:
  siglip-ext-convert to-aoti my-siglip my-siglip-aoti
  siglip-ext-eval zero-shot --model my-siglip-aoti --backend aoti --benchmark cifar100
"""


def register(commands: Subparsers) -> None:
    onnx = add_command(
        commands,
        "to-onnx",
        run,
        summary="a model folder to ONNX files for other runtimes",
        description=DESCRIPTION.format("ONNX files"),
        examples=ONNX_EXAMPLES,
    )
    export_arguments(onnx, "onnx")
    onnx.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="plain",
        help="transformers.js: under the names that it looks for, with settings that it reads alike; its zero-shot "
        "pipeline wants --towers dual or all",
    )
    openvino = add_command(
        commands,
        "to-openvino",
        run,
        summary="a model folder to OpenVINO's files",
        description=DESCRIPTION.format("OpenVINO's files") + OPENVINO_NOTE,
        examples=OPENVINO_EXAMPLES,
    )
    export_arguments(openvino, "openvino")
    aoti = add_command(
        commands,
        "to-aoti",
        run,
        summary="a model folder to packages that torch's AOTInductor compiled",
        description=DESCRIPTION.format("packages of torch's AOTInductor") + AOTI_NOTE,
        examples=AOTI_EXAMPLES,
    )
    export_arguments(aoti, "aoti")


def export_arguments(parser: Parser, form: str) -> None:
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
    with open(file, encoding="utf-8-sig") as opened:
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


def run(arguments: argparse.Namespace) -> None:
    print_report(arguments.out, export_model(arguments.folder, arguments.out, export_options(arguments)))
