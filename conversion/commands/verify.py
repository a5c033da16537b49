"""`verify`: a converted folder against the checkpoint it came from, and against recorded outputs."""

import argparse
from dataclasses import replace
from pathlib import Path

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..big_vision.recorded_outputs import compare_outputs
from ..checkpoint import Checkpoint, choices_of
from ..containers.sources import sha256
from ..errors import CheckpointError, VerificationError
from ..formats import open_checkpoint
from ..model_folder.folder import ModelFolder, open_folder, verify_folder
from ..model_folder.report import NAME, ConversionReport, Origin, libraries, write_report


EXAMPLES = """examples:
  siglip-ext-convert verify siglip-b16-256                 (unchanged since it was converted?)
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz --io io.npz
"""


def against(folder: ModelFolder, checkpoint: Checkpoint, report: ConversionReport) -> ConversionReport:
    """Compare every tensor with its source; returns what the report should say."""
    plan = checkpoint.plan(folder.config)
    differences, class_name = verify_folder(folder.path, plan, checkpoint.arrays)
    return replace(
        report,
        source=Origin(checkpoint.source.name, sha256(checkpoint.source.path)),
        class_name=class_name,
        left_out=plan.left_out,
        verified=True,
        tensors=differences,
    )


def check_unchanged(folder: ModelFolder) -> None:
    """Compare the weight files with the hashes that the conversion wrote down."""
    files = {} if folder.report is None else folder.report.files
    if not files:
        raise CheckpointError(f"{folder.path} has no {NAME} with hashes: name the checkpoint with --against")
    for name, expected in files.items():
        if Path(name).name != name or not (folder.path / name).is_file():
            raise VerificationError(f"{name} is missing")
        if sha256(folder.path / name) != expected:
            raise VerificationError(f"{name} has changed since the folder was converted")


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "verify",
        run,
        summary="compare a converted folder with its source",
        description="Compare a folder with its checkpoint tensor by tensor, and what it computes with recorded "
        f"outputs. The result is written to {NAME} in the folder.",
        examples=EXAMPLES,
    )
    parser.add_argument("folder", help="the converted folder")
    parser.add_argument("--against", help="the checkpoint it was made from; a path or a URL")
    parser.add_argument("--io", help="an .npz with inputs and outputs of the original code (see the fixtures)")


def run(arguments: argparse.Namespace) -> None:
    folder = open_folder(arguments.folder)
    if arguments.against is None and arguments.io is None:
        check_unchanged(folder)
        print("unchanged since it was converted and verified")
        return
    report = replace(folder.report or ConversionReport(), libraries=libraries())
    if arguments.against is not None:
        with open_checkpoint(arguments.against, name="none", choices=choices_of(folder.config)) as checkpoint:
            report = against(folder, checkpoint, report)
        print(f"{len(report.tensors)} tensors, largest difference {report.largest_difference:.3g}")
    if arguments.io is not None:
        report = replace(report, outputs=compare_outputs(arguments.folder, arguments.io))
        for name, difference in report.outputs.items():
            print(f"{name}: largest difference {difference:.3g}")
    write_report(folder.path, report)
    print(f"{arguments.folder}: verified")
