"""`report`: results side by side, as Markdown."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command
from modeling_siglip_ext.files import check_output_file, write_text

from ..results import compare


def register(commands: Subparsers) -> None:
    parser = add_command(commands, "report", run, summary="Results side by side, as Markdown.")
    parser.add_argument("results", nargs="+", help="result files, or folders with them")
    parser.add_argument("--output_file", metavar="FILE", help="Markdown file; without it the report is printed")


def run(arguments: argparse.Namespace) -> None:
    if arguments.output_file is not None:
        check_output_file(arguments.output_file, "--output_file")
    text = compare(arguments.results)
    if arguments.output_file is not None:
        write_text(arguments.output_file, text)
        print(arguments.output_file)
    else:
        print(text, end="")
