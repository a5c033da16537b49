"""`verify`: a converted folder against the checkpoint it came from, and against recorded outputs."""

import argparse
from pathlib import Path
from typing import Any

from transformers import BertConfig

from ..big_vision.config import Choices
from ..big_vision.recorded_outputs import compare_outputs
from ..containers.remote import local
from ..containers.sources import Source, open_source, sha256
from ..convert import verify_folder
from ..errors import CheckpointError, VerificationError
from ..model_folder.folder import ModelFolder, open_folder
from ..model_folder.report import NAME, libraries, write_report
from ..open_clip.names import is_open_clip, plan_open_clip
from ..plan import Plan, plan_big_vision, vision_of
from .arguments import add_command
from .from_jax import read_jax
from .from_open_clip import read_open_clip


EXAMPLES = """examples:
  siglip-ext-convert verify siglip-b16-256                 (unchanged since it was converted?)
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz
  siglip-ext-convert verify siglip-b16-256 --against webli_en_b16_256_60500360.npz --io io.npz
"""


def jax_plan(folder: ModelFolder, source: Source) -> tuple[dict, Plan]:
    """The plan by which a big_vision checkpoint becomes this folder's model."""
    vision = vision_of(folder.config)
    text = getattr(folder.config, "text_config", None)
    bert = isinstance(text, BertConfig)
    choices = Choices(
        image_size=vision.image_size if vision.position_embedding_type == "sincos2d" else None,
        image_pooling=vision.pooling,
        text_pooling=folder.config.text_pooling if bert else getattr(text, "pooling", None),
        text_heads=text.num_attention_heads if bert else None,
    )
    checkpoint = read_jax(source, known=choices)
    return checkpoint.params, plan_big_vision(checkpoint.params, checkpoint.config, folder.config)


def open_clip_plan(folder: ModelFolder, source: Source) -> Plan:
    """The same for a checkpoint of open_clip."""
    towers = vision_of(folder.config), getattr(folder.config, "text_config", None)
    config, _ = read_open_clip(source, *(getattr(tower, "num_attention_heads", None) for tower in towers))
    return plan_open_clip(source.arrays, config, folder.config)


def against(folder: ModelFolder, source: Source) -> dict[str, Any]:
    """Compare every tensor with its source; returns what the report should say."""
    if is_open_clip(source.arrays):
        params, plan = source.arrays, open_clip_plan(folder, source)
    else:
        params, plan = jax_plan(folder, source)
    differences, class_name = verify_folder(folder.path, plan, params)
    return {
        "source": {"name": source.name, "sha256": source.sha256()},
        "class": class_name,
        "left_out": plan.left_out,
        "verified": True,
        "largest_difference": max(differences.values()),
        "tensors": {name: {"largest_difference": value} for name, value in differences.items()},
    }


def check_unchanged(folder: ModelFolder) -> None:
    """Compare the weight files with the hashes that the conversion wrote down."""
    files = (folder.report or {}).get("files")
    if not files:
        raise CheckpointError(f"{folder.path} has no {NAME} with hashes: name the checkpoint with --against")
    for name, expected in files.items():
        if Path(name).name != name or not (folder.path / name).is_file():
            raise VerificationError(f"{name} is missing")
        if sha256(folder.path / name) != expected:
            raise VerificationError(f"{name} has changed since the folder was converted")


def register(commands: argparse._SubParsersAction) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    folder = open_folder(arguments.folder)
    found: dict[str, Any] = {}
    if arguments.against is not None:
        with local(arguments.against) as path:
            found = against(folder, open_source(path))
        print(f"{len(found['tensors'])} tensors, largest difference {found['largest_difference']:.3g}")
    if arguments.io is not None:
        found["outputs"] = compare_outputs(arguments.folder, arguments.io)
        for name, difference in found["outputs"].items():
            print(f"{name}: largest difference {difference:.3g}")
    if not found:
        check_unchanged(folder)
        print("unchanged since it was converted and verified")
        return 0
    write_report(folder.path, {**(folder.report or {}), **found, "libraries": libraries()})
    print(f"{arguments.folder}: verified")
    return 0
