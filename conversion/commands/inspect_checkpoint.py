"""`inspect`: what a checkpoint holds and what it would become, from its headers alone."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from ..big_vision.config import Choices
from ..containers.arrays import Arrays
from ..containers.npz import read_npz
from ..containers.remote import is_url, local, opened
from ..containers.sources import Source, open_source
from ..convert import choose_form
from ..errors import AnotherFileError, CheckpointError
from ..model_folder.folder import open_folder
from ..open_clip.names import is_open_clip
from ..plan import AnyConfig, plan_big_vision, vision_of
from ..released.catalogue import Entry
from .arguments import add_command, choices, choices_arguments
from .from_jax import JaxCheckpoint, choose_entry, read_jax
from .from_open_clip import read_open_clip


EXAMPLES = """examples:
  siglip-ext-convert inspect webli_en_so400m_384_58765454.npz
  siglip-ext-convert inspect gs://big_vision/siglip2/siglip2_b16_naflex.npz
"""


def tower_lines(config: AnyConfig) -> list[str]:
    vision = vision_of(config)
    size = f"grid of {vision.grid_size}" if vision.naflex else f"{vision.image_size} px"
    parts = [
        f"{vision.hidden_size} wide, {vision.num_hidden_layers} layers, {vision.num_attention_heads} heads",
        f"patch {vision.patch_size}, {'NaFlex, ' if vision.naflex else ''}{size}, {vision.position_embedding_type}",
        f"pooling {vision.pooling}",
    ]
    if vision.projection_size is not None:
        parts.append(f"head to {vision.projection_size}")
    lines = [f"image tower: {'; '.join(parts)}"]
    text = getattr(config, "text_config", None)
    if text is not None:
        pooling = getattr(text, "pooling", None) or config.text_pooling
        head = config.text_projection_size if not hasattr(text, "use_head") else text.use_head and text.projection_size
        parts = [
            f"{text.hidden_size} wide, {text.num_hidden_layers} layers, {text.num_attention_heads} heads",
            f"{text.vocab_size:,} tokens, length {text.max_position_embeddings}",
            f"pooling {pooling}",
            f"head to {head}" if head else "no head",
        ]
        lines.append(f"text tower: {text.model_type}; {'; '.join(parts)}")
        lines.append(f"loss: {config.loss_type}")
    return lines


def count(arrays: Arrays, start: str) -> int:
    return sum(array.size for name, array in arrays.items() if name.startswith(start))


def catalogue_line(entry: Entry | None) -> str:
    if entry is None:
        return "catalogue: not a file of it"
    return f"catalogue: {entry.name} ({entry.licence or 'licence unknown'})"


def report_lines(checkpoint: JaxCheckpoint) -> list[str]:
    params, layout, entry = checkpoint.params, checkpoint.layout, checkpoint.entry
    plan = plan_big_vision(params, checkpoint.config, checkpoint.config)
    stacked = ", ".join(layout["stacked"])
    parts = {"image": count(params, "img/"), "text": count(params, "txt/"), "language model": count(params, "llm/")}
    lines = [
        catalogue_line(entry),
        *tower_lines(checkpoint.config),
        "parameters: " + ", ".join(f"{name} {number:,}" for name, number in parts.items() if number),
        f"arrays: {len(params)} under {layout['prefix'] or 'no prefix'}; {types_line(params)}",
        f"layers: {f'stacked in {stacked}' if stacked else 'one by one'}{', old names' if layout['legacy'] else ''}",
    ]
    other = len(checkpoint.source.arrays) - len(params)
    if other > 0:
        lines.append(f"beside them: {other} arrays of a training run, which are not converted")
    for what, names in plan.left_out.items():
        lines.append(f"left out: {what} ({len(names)} arrays)")
    lines.append(becomes(checkpoint.config))
    if entry is not None and entry.tokenizer is not None:
        lines.append(f"tokenizer: {entry.tokenizer.name}, as in {entry.tokenizer.repo}")
    return lines


def register(commands: argparse._SubParsersAction) -> None:
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
    parser.add_argument("--image-size", type=int, help="pixels, where the positions cannot tell")
    parser.add_argument("--image-heads", type=int, help="attention heads of an open_clip image tower of unusual width")
    choices_arguments(parser)


def becomes(config: AnyConfig) -> str:
    config, native = choose_form(config, None)
    if not native:
        return "becomes: siglip_ext (with its code for trust_remote_code)"
    return f"becomes: {'siglip2' if vision_of(config).naflex else 'siglip'}"


def types_line(arrays: Arrays) -> str:
    dtypes = Counter(str(array.dtype).removeprefix("torch.") for array in arrays.values())
    return ", ".join(f"{number} {name}" for name, number in dtypes.most_common())


def other_lines(kind: str, config: AnyConfig, arrays: Arrays) -> list[str]:
    """Of a checkpoint that is not big_vision's."""
    total = sum(array.size for array in arrays.values())
    return [kind, *tower_lines(config), f"parameters: {total:,}", f"tensors: {types_line(arrays)}", becomes(config)]


def read_named(source: Source, entry: Entry | None, known: Choices) -> JaxCheckpoint:
    """The checkpoint; one that is called like a released file without being it is described as what it is."""
    try:
        return read_jax(source, entry, known)
    except AnotherFileError as error:
        print(f"note: {error}", file=sys.stderr)
        return read_jax(source, None, known)


def source_lines(source: Source, arguments: argparse.Namespace) -> list[str]:
    """What to print about a checkpoint.

    Raises:
        CheckpointError: Nothing that this package converts.
    """
    known = choices(arguments)
    if is_open_clip(source.arrays):
        config, _ = read_open_clip(source, arguments.image_heads, known.text_heads)
        return other_lines("a checkpoint of open_clip", config, source.arrays)
    if not any(name.endswith("img/embedding/kernel") for name in source.arrays):
        names = ", ".join(sorted(source.arrays)[:3])
        raise CheckpointError(
            f"{source.name} holds {len(source.arrays)} arrays ({names}, …), but no big_vision image tower"
        )
    read = read_named if arguments.name is None else read_jax
    return report_lines(read(source, choose_entry(arguments.checkpoint, arguments.name), known))


def remote_lines(arguments: argparse.Namespace) -> list[str] | None:
    """The same of an `.npz` file at a URL, of which only the headers travel; None where that is not possible."""
    if not (is_url(arguments.checkpoint) and arguments.checkpoint.endswith(".npz")):
        return None
    with opened(arguments.checkpoint) as file:
        if file is None:
            return None
        name = arguments.checkpoint.rsplit("/", 1)[-1]
        return source_lines(Source(Path(name), name, read_npz(name, file)), arguments)


def inspect(arguments: argparse.Namespace) -> list[str]:
    """What to print about a checkpoint or a model folder, here or at a URL."""
    found = remote_lines(arguments)
    if found is not None:
        return found
    with local(arguments.checkpoint) as path:
        if (path / "config.json").is_file():
            folder = open_folder(path)
            return other_lines("a model folder", folder.config, folder.tensors)
        return source_lines(open_source(path), arguments)


def run(arguments: argparse.Namespace) -> int:
    print("\n".join(inspect(arguments)))
    return 0
