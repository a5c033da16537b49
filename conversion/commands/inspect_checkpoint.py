"""`inspect`: what a checkpoint holds and what it would become, from its headers alone."""

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from transformers import PreTrainedConfig

from modeling_siglip_ext.command_line import Subparsers, add_command, refuse_unused
from modeling_siglip_ext.loading import some

from ..checkpoint import Checkpoint, Choices
from ..containers.arrays import count_values, types_line
from ..containers.npz import read_npz
from ..containers.remote import is_url, opened
from ..containers.sources import Source
from ..errors import AnotherFileError
from ..formats import check_known, fetched, read_checkpoint, source_at
from ..model_folder.folder import ModelFolder, choose_form, model_shapes, open_folder
from ..open_clip.config import CONFIG as OPEN_CLIP
from ..plan import AnyConfig, vision_of
from .arguments import check_choices, choices, choices_arguments


EXAMPLES = """examples:
  siglip-ext-convert inspect webli_en_so400m_384_58765454.npz
  siglip-ext-convert inspect gs://big_vision/siglip2/siglip2_b16_naflex.npz
"""


def transformer(config: PreTrainedConfig) -> str:
    return f"{config.hidden_size} wide, {config.num_hidden_layers} layers, {config.num_attention_heads} heads"


def tower_lines(config: AnyConfig) -> list[str]:
    vision, text = vision_of(config), getattr(config, "text_config", None)
    size = f"NaFlex, grid of {vision.grid_size}" if vision.naflex else f"{vision.image_size} px"
    head = "" if vision.projection_size is None else f"; head to {vision.projection_size}"
    lines = [
        f"image tower: {transformer(vision)}; patch {vision.patch_size}, {size}, {vision.position_embedding_type}; "
        f"pooling {vision.pooling}{head}"
    ]
    if text is not None:
        pooling = getattr(text, "pooling", None) or getattr(config, "text_pooling", None)
        own = getattr(text, "use_head", False) and text.projection_size
        head = own or getattr(config, "text_projection_size", None)
        lines.append(
            f"text tower: {text.model_type}; {transformer(text)}; {text.vocab_size:,} tokens, "
            f"length {text.max_position_embeddings}; pooling {pooling}; {f'head to {head}' if head else 'no head'}"
        )
        lines.append(f"loss: {getattr(config, 'loss_type', None)}")
    return lines


def becomes(config: AnyConfig) -> str:
    config, native = choose_form(config, None)
    if not native:
        return "becomes: siglip_ext (with its code for trust_remote_code)"
    return f"becomes: {'siglip2' if vision_of(config).naflex else 'siglip'}"


def checkpoint_lines(checkpoint: Checkpoint) -> list[str]:
    config, left_out = checkpoint.config, checkpoint.plan(checkpoint.config).left_out
    lines = [f"a checkpoint of {checkpoint.layout['kind']}", *tower_lines(config), *checkpoint.lines()]
    lines += [f"left out: {what} ({len(names)} arrays)" for what, names in left_out.items()]
    lines.append(becomes(config))
    if checkpoint.tokenizer is not None:
        lines.append(f"tokenizer: {checkpoint.tokenizer.name}, as in {checkpoint.tokenizer.repo}")
    return lines


def folder_lines(path: Path) -> list[str]:
    folder = open_folder(path)
    counted = [f"parameters: {count_values(folder.tensors):,}", f"tensors: {types_line(folder.tensors)}"]
    counted += differences(folder)
    return ["a model folder", *tower_lines(folder.config), *counted, becomes(folder.config)]


def differences(folder: ModelFolder) -> list[str]:
    """What the class of the configuration lacks in the folder's tensors, has in another shape, or does not know."""
    name, shapes = model_shapes(folder.path)
    there = {key: tensor.shape for key, tensor in folder.tensors.items()}
    kinds = {
        f"missing of the {len(shapes)} tensors of {name}": shapes.keys() - there.keys(),
        "of another shape": {key for key in shapes.keys() & there.keys() if shapes[key] != there[key]},
        f"unknown to {name}": there.keys() - shapes.keys(),
    }
    return [f"{what}: {len(keys)} ({some(keys)})" for what, keys in kinds.items() if keys]


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "inspect",
        run,
        summary="what a checkpoint holds and would become",
        description="Describe a checkpoint of big_vision or open_clip, or a model folder, from its headers alone.",
        examples=EXAMPLES,
    )
    parser.add_argument("checkpoint", help="an .npz file, a tensorstore, open_clip or model folder; a path or a URL")
    parser.add_argument("--name", help="which file of the catalogue it is, or none")
    parser.add_argument("--image_size", type=int, help="pixels, where the positions cannot tell")
    parser.add_argument("--image_heads", type=int, help="attention heads of an open_clip image tower of unusual width")
    choices_arguments(parser)


@contextmanager
def source_or_folder(path: str) -> Generator[Source | Path]:
    """A checkpoint's arrays, or the path of a model folder. Of an `.npz` file at a URL only the headers travel, where
    the other side gives parts."""
    if is_url(path) and path.endswith(".npz"):
        name = path.rsplit("/", 1)[-1]
        with opened(path) as file:
            if file is not None:
                yield Source(Path(name), name, read_npz(name, file))
                return
    with fetched(path) as here:
        described = (here / "config.json").is_file() and not (here / OPEN_CLIP).is_file()  # timm's is called so, too
        yield here if described else source_at(here)


def read_named(source: Source, arguments: argparse.Namespace) -> Checkpoint:
    """The checkpoint; one that is called like a released file without being it is described as what it is."""
    origin, known = arguments.checkpoint, choices(arguments)
    try:
        return read_checkpoint(source, origin=origin, name=arguments.name, choices=known)
    except AnotherFileError as error:
        if arguments.name is not None:
            raise
        print(f"note: {error}", file=sys.stderr)
        return read_checkpoint(source, origin=origin, name="none", choices=known)


def run(arguments: argparse.Namespace) -> None:
    check_known(None, arguments.name)
    known = [field.name for field in fields(Choices)]
    with source_or_folder(arguments.checkpoint) as found:
        if isinstance(found, Path):
            refuse_unused(arguments, ["name", *known], "with a model folder")
            lines = folder_lines(found)
        else:
            checkpoint = read_named(found, arguments)
            check_choices(choices(arguments), checkpoint.config, known)
            lines = checkpoint_lines(checkpoint)
    print("\n".join(lines))
