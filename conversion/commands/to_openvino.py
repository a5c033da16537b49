"""`to-openvino`: a model folder to OpenVINO's files, compared with the model before they are there."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..export.export import export_model
from .export_arguments import export_arguments, export_options, print_report


EXAMPLES = """examples:
  siglip-ext-convert to-openvino my-siglip my-siglip-openvino
  siglip-ext-convert to-openvino my-siglip my-siglip-int8 --precision int8 --images photos --texts captions.txt
  siglip-ext-eval zero-shot --model my-siglip-openvino --backend openvino --benchmark cifar100
"""


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "to-openvino",
        run,
        summary="a model folder to OpenVINO's files",
        description="Write a model's towers as OpenVINO's files with free batch sizes, and NaFlex grids, beside what "
        "reads their images and texts. They are run and compared with the model before the folder appears. They keep "
        "float32 or float16 weights but not in which precision to compute: export.json says float32, and our runtime "
        "follows it; another one computes in bfloat16 where the machine does, unless it is told not to.",
        examples=EXAMPLES,
    )
    export_arguments(parser, "openvino")


def run(arguments: argparse.Namespace) -> None:
    print_report(arguments.out, export_model(arguments.folder, arguments.out, export_options(arguments)))
