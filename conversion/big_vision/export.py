"""A model folder as an `.npz` that big_vision loads."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_siglip_ext import SiglipExtTextConfig
from modeling_siglip_ext.files import new_file
from modeling_siglip_ext.loading import some

from ..containers.arrays import DTYPES
from ..containers.npz import NpzWriter, read_npz
from ..errors import CheckpointError
from ..model_folder.folder import ModelFolder
from ..name_map import Piece, Rule, array_shapes, pieces_by_array
from ..plan import AnyConfig, identity_head, zero_bias
from ..transfer import compare_back, mapped_back
from .layouts import Layout, Outgoing, modern, outgoing, parameters, restore_legacy, stored_layout, unpack
from .names import rules


def layout_for(folder: ModelFolder) -> Layout:
    """How the arrays were called and stored before they became this folder, if they came from big_vision.

    Raises:
        CheckpointError: The report says it in another form than `from-jax` does.
    """
    try:
        return stored_layout({} if folder.report is None else folder.report.layout)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}: {error}") from error


def unchanged(folder: ModelFolder, added: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(folder.tensors[name].load().float(), tensor) for name, tensor in added.items())


def without_additions(folder: ModelFolder, layout: Layout) -> tuple[AnyConfig, set[str]]:
    """The configuration without what stock form demanded, a text head or a bias, unless that was trained since.

    Returns:
        The configuration, and the names of the tensors that it does without.
    """
    config, names = copy.deepcopy(folder.config), set()
    text = getattr(config, "text_config", None)
    if not layout.text_head and isinstance(text, SiglipExtTextConfig) and text.use_head:
        added = identity_head(text)
        if unchanged(folder, added):
            text.use_head = False
            names |= set(added)
    if not layout.bias and getattr(config, "logit_bias_init", None) is not None and unchanged(folder, zero_bias()):
        config.loss_type, config.logit_bias_init = "softmax", None
        names |= set(zero_bias())
    return config, names


def check_tensors(folder: ModelFolder, table: list[Rule], added: set[str]) -> None:
    expected = {rule.torch_name for rule in table}
    missing, left_over = expected - set(folder.tensors), set(folder.tensors) - expected - added
    if missing:
        raise CheckpointError(f"{folder.path} has no {some(missing, 5)}")
    if left_over:
        raise CheckpointError(f"{folder.path}: big_vision has no place for {some(left_over, 5)}")


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
    table = rules(config, frozenset(layout.stacked))
    check_tensors(folder, table, added)
    shapes = array_shapes(table, {rule.torch_name: folder.tensors[rule.torch_name].shape for rule in table})
    pieces = dict(sorted(pieces_by_array(table).items()))

    def stored_type(name: str, piece: Piece) -> torch.dtype:
        wanted = dtype or layout.dtypes.get(name, layout.dtype)
        found = DTYPES.get(wanted or "", folder.tensors[piece.rule.torch_name].dtype)
        if found is None:
            raise CheckpointError(f"{folder.path}: {piece.rule.torch_name} is of a type that no weights have")
        return found

    def blocks(name: str) -> Iterator[torch.Tensor]:
        return mapped_back(folder.tensors, pieces[name], allow_nonfinite=allow_nonfinite)

    arrays = {
        name: Outgoing(shapes[name], stored_type(name, pieces[name][0]), lambda name=name: blocks(name))
        for name in pieces
    }
    if dtype is None:
        arrays = restore_legacy(arrays, layout.legacy)
    arrays |= {name: outgoing(unpack(stored)) for name, stored in layout.beside.items()}
    with new_file(out) as path:
        with NpzWriter(path) as writer:
            for name, array in tqdm(sorted(arrays.items()), desc="converting", unit="array"):
                writer.write(layout.prefix + name, array.shape, array.dtype, array.blocks())
        written = modern(parameters(read_npz(path)))
        compare_back(folder.tensors, {name: written[name] for name in {*written} - {*layout.beside}}, pieces)
    return len(arrays)
