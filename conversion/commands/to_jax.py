"""`to-jax`: a model folder to an `.npz` that big_vision loads."""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_siglip_ext import SiglipExtTextConfig
from modeling_siglip_ext.files import new_file

from ..big_vision.layouts import Outgoing, modern, outgoing, parameters, restore_legacy, unpack
from ..big_vision.names import identity_head, rules, zero_bias
from ..containers.arrays import DTYPES
from ..containers.npz import NpzWriter, read_npz
from ..errors import CheckpointError
from ..model_folder.folder import ModelFolder, open_folder
from ..model_folder.report import NAME
from ..name_map import Piece, Rule, array_shapes, pieces_by_array
from ..plan import AnyConfig
from ..transfer import compare_back, mapped_back
from .arguments import add_command, outward_arguments


EXAMPLES = """examples:
  siglip-ext-convert to-jax siglip-b16-256 back.npz
  siglip-ext-convert to-jax my-fine-tuned-siglip my-siglip.npz --dtype bfloat16
"""
DEFAULT_LAYOUT = {
    "prefix": "params/",
    "stacked": [],
    "dtype": None,
    "dtypes": {},
    "text_head": True,
    "bias": True,
    "beside": {},
    "legacy": None,
}


def layout_for(folder: ModelFolder) -> dict:
    """How the arrays were called and stored before they became this folder, if they came from big_vision.

    Raises:
        CheckpointError: The report says it in another form than `from-jax` does.
    """
    stored = (folder.report or {}).get("layout")
    if not isinstance(stored, dict) or stored.get("kind") != "big_vision":
        return DEFAULT_LAYOUT
    layout = DEFAULT_LAYOUT | stored
    damaged = [
        key
        for key, usual in DEFAULT_LAYOUT.items()
        if not isinstance(layout[key], type(usual) if usual is not None else (str, dict, type(None)))
    ]
    legacy = layout["legacy"] if isinstance(layout["legacy"], dict) else {"names": {}, "kept": {}}
    damaged += [f"legacy {key}" for key in ("names", "kept") if not isinstance(legacy.get(key), dict)]
    if damaged:
        raise CheckpointError(f"{folder.path / NAME} is damaged: layout, {', '.join(damaged)}")
    return layout


def unchanged(folder: ModelFolder, added: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(folder.tensors[name].load().float(), tensor) for name, tensor in added.items())


def without_additions(folder: ModelFolder, layout: dict) -> tuple[AnyConfig, set[str]]:
    """The configuration without what stock form demanded, a text head or a bias, unless that was trained since.

    Returns:
        The configuration, and the names of the tensors that it does without.
    """
    config, names = copy.deepcopy(folder.config), set()
    text = getattr(config, "text_config", None)
    if not layout["text_head"] and isinstance(text, SiglipExtTextConfig) and text.use_head:
        added = identity_head(text)
        if unchanged(folder, added):
            text.use_head = False
            names |= set(added)
    if not layout["bias"] and getattr(config, "logit_bias_init", None) is not None and unchanged(folder, zero_bias()):
        config.loss_type, config.logit_bias_init = "softmax", None
        names |= set(zero_bias())
    return config, names


def check_tensors(folder: ModelFolder, table: list[Rule], added: set[str]) -> None:
    expected = {rule.torch_name for rule in table}
    missing, left_over = expected - set(folder.tensors), set(folder.tensors) - expected - added
    if missing:
        raise CheckpointError(f"{folder.path} has no {', '.join(sorted(missing)[:5])}")
    if left_over:
        raise CheckpointError(f"{folder.path}: big_vision has no place for {', '.join(sorted(left_over)[:5])}")


def to_jax(folder: ModelFolder, out: str | Path, *, dtype: str | None = None, allow_nonfinite: bool = False) -> int:
    """Write an `.npz` with the names, stacking and types that the folder was converted from, or the usual ones.

    Args:
        dtype: Of all arrays; None keeps each one's.

    Returns:
        Number of arrays, each compared with its tensor.

    Raises:
        FileExistsError: `out` exists.
        CheckpointError: The folder holds tensors that big_vision has no place for, or values that are not finite.
        VerificationError: The file differs from the folder.
    """
    layout = layout_for(folder)
    config, added = without_additions(folder, layout)
    table = rules(config, frozenset(layout["stacked"]))
    check_tensors(folder, table, added)
    shapes = array_shapes(table, {rule.torch_name: folder.tensors[rule.torch_name].shape for rule in table})
    pieces = dict(sorted(pieces_by_array(table).items()))

    def stored_type(name: str, piece: Piece) -> torch.dtype:
        wanted = dtype or layout["dtypes"].get(name, layout["dtype"])
        return DTYPES[wanted] if wanted in DTYPES else folder.tensors[piece.rule.torch_name].dtype

    def blocks(name: str) -> Iterator[torch.Tensor]:
        return mapped_back(folder.tensors, pieces[name], allow_nonfinite=allow_nonfinite)

    arrays = {
        name: Outgoing(shapes[name], stored_type(name, pieces[name][0]), lambda name=name: blocks(name))
        for name in pieces
    }
    if dtype is None:
        arrays = restore_legacy(arrays, layout["legacy"])
    arrays |= {name: outgoing(unpack(stored)) for name, stored in layout["beside"].items()}
    with new_file(out) as path:
        with NpzWriter(path) as writer:
            for name, array in tqdm(sorted(arrays.items()), desc="converting", unit="array"):
                writer.write(layout["prefix"] + name, array.shape, array.dtype, array.blocks())
        written = modern(parameters(read_npz(path)))
        compare_back(folder.tensors, {name: written[name] for name in {*written} - {*layout["beside"]}}, pieces)
    return len(arrays)


def register(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "to-jax",
        run,
        summary="a model folder to an .npz for big_vision",
        description="Write a model folder as an .npz that big_vision loads. A folder that from-jax made comes back "
        "with the names, stacking and types it had.",
        examples=EXAMPLES,
    )
    outward_arguments(parser, "the .npz file")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.out.endswith(".npz"):
        raise CheckpointError(f"{arguments.out} must end in .npz: big_vision goes by that")
    folder = open_folder(arguments.folder)
    count = to_jax(folder, arguments.out, dtype=arguments.dtype, allow_nonfinite=arguments.allow_nonfinite)
    print(f"{arguments.out}: {count} arrays, each verified against {arguments.folder}")
    return 0
