"""`to-onnx`: a model folder to ONNX files, compared with the model before they are there."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..export.export import LAYOUTS, export_model
from .export_arguments import export_arguments, export_options, print_report


EXAMPLES = """examples:
  siglip-ext-convert to-onnx my-siglip my-siglip-onnx
  siglip-ext-convert to-onnx my-siglip my-siglip-onnx --towers image --precision fp16
  siglip-ext-convert to-onnx my-siglip my-siglip-int8 --precision int8 --images photos --texts captions.txt \\
      --min_cosine 0.9997 --min_agreement 0.98
  siglip-ext-convert to-onnx my-siglip my-siglip-js --layout transformers.js --towers all
  siglip-ext-eval zero-shot --model my-siglip-onnx --backend onnx --benchmark cifar100
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "to-onnx",
        run,
        summary="a model folder to ONNX files for other runtimes",
        description="Write a model's towers as ONNX files with free batch sizes, and NaFlex grids, beside what reads "
        "their images and texts. They are run and compared with the model before the folder appears.",
        examples=EXAMPLES,
    )
    export_arguments(parser, "onnx")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="plain",
        help="transformers.js: under the names that it looks for, with settings that it reads alike; its zero-shot "
        "pipeline wants --towers dual or all",
    )


def run(arguments: argparse.Namespace) -> None:
    print_report(arguments.out, export_model(arguments.folder, arguments.out, export_options(arguments)))
