"""`from-jax`: a big_vision checkpoint to a folder that `from_pretrained` loads."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..big_vision.config import Choices, describe
from ..big_vision.layouts import container_prefix, describe_legacy, modern, pack, parameters, stacked_towers
from ..containers.arrays import LazyArray
from ..containers.remote import local
from ..containers.sources import Source, open_source
from ..convert import Options, Result, convert
from ..errors import CheckpointError
from ..plan import AnyConfig, NewSizes, plan_big_vision, resized
from ..released.catalogue import Entry, find, recognise, text_tokens
from ..resize import describe_changes
from .arguments import add_command, choices, choices_arguments
from .output import folder_arguments, folder_options, print_result


EXAMPLES = """examples:
  siglip-ext-convert from-jax webli_en_b16_256_60500360.npz siglip-b16-256
  siglip-ext-convert from-jax gs://big_vision/siglip2/siglip2_so400m14_384.npz siglip2-so400m --dtype bfloat16
  siglip-ext-convert from-jax siglip2_b16_256.npz siglip2-b16-384 --image-size 384 --tokenizer gemma/tokenizer.json
  siglip-ext-convert from-jax my_run/checkpoint.bv my-siglip --text-rules v2 --tokenizer my-tokenizer
  siglip-ext-convert from-jax my_softmax_run/checkpoint.npz my-clip --zero-bias
"""


@dataclass(frozen=True)
class JaxCheckpoint:
    """A checkpoint of big_vision: its parameters under today's names, and what they are.

    Args:
        source: The file or folder.
        params: Its parameters.
        config: What their shapes (and the catalogue) tell.
        layout: How the arrays are called and stored, for the way back.
        entry: Its place in the catalogue.
    """

    source: Source
    params: dict[str, LazyArray]
    config: AnyConfig
    layout: dict[str, Any]
    entry: Entry | None = None


def beside(params: dict[str, LazyArray]) -> dict[str, Any]:
    """The temperature of a model of one tower (CLIPPO), which no class has a place for, for the way back."""
    one_tower = not any(name.startswith("txt/") for name in params)
    return {"t": pack(params["t"].load())} if one_tower and "t" in params and params["t"].shape == (1,) else {}


def layout_of(source: Source, params: dict[str, LazyArray]) -> dict[str, Any]:
    prefix = container_prefix(source.arrays)
    dtypes = {name: str(array.dtype).removeprefix("torch.") for name, array in params.items()}
    usual = max(set(dtypes.values()), key=list(dtypes.values()).count)
    return {
        "prefix": prefix,
        "stacked": sorted(stacked_towers(params)),
        "dtype": usual,
        "dtypes": {name: dtype for name, dtype in sorted(dtypes.items()) if dtype != usual},
        "text_head": "txt/head/kernel" in params,
        "bias": "b" in params,
        "beside": beside(params),
        "legacy": describe_legacy(parameters(source.arrays)),
    }


def choose_entry(path: str, name: str | None) -> Entry | None:
    if name == "none":
        return None
    return recognise(path) if name is None else find(name)


def read_jax(source: Source, entry: Entry | None = None, known: Choices | None = None) -> JaxCheckpoint:
    """What a checkpoint of big_vision holds.

    Args:
        entry: Its place in the catalogue, which tells what the shapes do not.
        known: The same from the user, where there is no entry.

    Raises:
        AnotherFileError: Not the file that the entry describes.
        CheckpointError: Not a big_vision image-text checkpoint.
    """
    params = modern(parameters(source.arrays))
    try:
        config = describe(params, known if entry is None else entry.choices)
        if entry is not None:
            entry.check(config)
    except CheckpointError as error:
        raise type(error)(f"{source.name}: {error}") from error
    if entry is not None and entry.tokenizer is not None and entry.tokenizer.rules != "bert":
        for key, value in text_tokens(entry.tokenizer.rules).items():
            setattr(config.text_config, key, value)
    return JaxCheckpoint(source, params, config, layout_of(source, params), entry)


def from_jax(checkpoint: JaxCheckpoint, out: str | Path, options: Options, sizes: NewSizes) -> Result:
    """Write the folder of a checkpoint; see `convert`."""
    config = resized(checkpoint.config, sizes)
    entry = checkpoint.entry
    facts = {
        "catalogue": None if entry is None else entry.name,
        "licence": None if entry is None else entry.licence,
        "layout": {"kind": "big_vision", **checkpoint.layout},
        "changes": describe_changes(checkpoint.config, config),
    }
    try:
        return convert(
            checkpoint.source,
            checkpoint.params,
            lambda config: plan_big_vision(checkpoint.params, checkpoint.config, config),
            config,
            out,
            options,
            tokenizer=None if entry is None else entry.tokenizer,
            text_length=entry.text_length if entry is not None and entry.bert else None,
            facts=facts,
        )
    except CheckpointError as error:
        if checkpoint.source.name in str(error):
            raise
        raise CheckpointError(f"{checkpoint.source.name}: {error}") from error


def register(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "from-jax",
        run,
        summary="a big_vision checkpoint to a folder for from_pretrained",
        description="Convert a checkpoint of big_vision, verify every tensor, and write a folder for from_pretrained.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "checkpoint", help="an .npz file or a tensorstore folder; a path or a URL (gs://, https://, hf://)"
    )
    parser.add_argument("out", help="the folder to write; must not exist")
    parser.add_argument(
        "--name", help="which file of the catalogue it is (see `list`), where its own name does not say; or none"
    )
    sizes = parser.add_argument_group("other sizes than the checkpoint's")
    sizes.add_argument("--image-size", type=int, help="pixels; positions are resampled as big_vision does")
    sizes.add_argument("--patch-size", type=int, help="pixels; the kernel is resized as in FlexiViT")
    sizes.add_argument("--text-length", type=int, help="tokens; positions are stretched (fine-tune afterwards)")
    sizes.add_argument("--tower", choices=("fixed", "naflex"), help="image tower for one size, or for any (NaFlex)")
    choices_arguments(parser)
    folder_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    entry = choose_entry(arguments.checkpoint, arguments.name)
    naflex = None if arguments.tower is None else arguments.tower == "naflex"
    sizes = NewSizes(arguments.image_size, arguments.patch_size, arguments.text_length, naflex)
    options = folder_options(arguments)
    with local(arguments.checkpoint, Path(arguments.out).absolute().parent) as path:
        checkpoint = read_jax(open_source(path), entry, choices(arguments))
        result = from_jax(checkpoint, arguments.out, options, sizes)
    print_result(arguments.out, result)
    return 0
