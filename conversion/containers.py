"""Reads the arrays of a JAX checkpoint one at a time, as torch tensors (numpy has no bfloat16)."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


class CheckpointError(ValueError):
    """A checkpoint that is not what it claims to be; the message names the file and what to do."""


@dataclass(frozen=True)
class LazyArray:
    """An array that is read when `load` is called; its shape is known before."""

    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same numbers; numpy stores bfloat16 as two raw bytes, `|V2`, tensorstore as `bfloat16`."""
    if array.dtype == np.dtype("V2") or array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def npz_shape(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    """The shape in a member's header; the data are not read."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError(f"{member} holds pickled objects, which are never loaded")
    return shape


def read_npz(path: str | Path) -> dict[str, LazyArray]:
    """The arrays of an `.npz` file by name.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not an `.npz` file, a damaged one, or one with pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")

    def load(member: str) -> torch.Tensor:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                return as_tensor(np.lib.format.read_array(stream, allow_pickle=False))
        except (zipfile.BadZipFile, ValueError, TypeError, EOFError) as error:
            raise CheckpointError(f"{path}: cannot read {member}: {error}") from error

    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            shapes = {member: npz_shape(archive, member) for member in members}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a sound .npz file: {error}") from error
    return {
        member.removesuffix(".npy"): LazyArray(shape, lambda member=member: load(member))
        for member, shape in shapes.items()
    }


def tensorstore_folder(path: Path) -> Path | None:
    """The folder of arrays that a big_vision checkpoint path stands for: `<path>-LAST` names the newest one."""
    pointer = path.parent / f"{path.name}-LAST"
    if not pointer.is_file():
        return path if path.is_dir() else None
    step = pointer.read_text().strip()
    folders = [path.parent / f"{path.name}-{step}{suffix}" for suffix in ("", "-tmp")]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise CheckpointError(f"{pointer} points to {folders[0]}, which does not exist")
    return found


def read_tensorstore(folder: str | Path) -> dict[str, LazyArray]:
    """The arrays of a tensorstore folder by name: one zarr (version 2) array each, `/` in names written as `~`.

    Raises:
        CheckpointError: No arrays there, a damaged one, or the tensorstore library is missing.
    """
    folder = Path(folder)
    try:
        import tensorstore
    except ImportError as error:
        raise CheckpointError(f"{folder} is a tensorstore folder: pip install siglip-ext[tensorstore]") from error

    def load(path: Path) -> torch.Tensor:
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
        try:
            return as_tensor(tensorstore.open(spec).result().read().result())
        except ValueError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error

    arrays = {}
    for metadata in sorted(folder.glob("*/.zarray")):
        try:
            shape = tuple(json.loads(metadata.read_text())["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{metadata} is damaged: {error}") from error
        name = metadata.parent.name.replace("~", "/")
        arrays[name] = LazyArray(shape, lambda path=metadata.parent: load(path))
    if not arrays:
        raise CheckpointError(f"{folder} holds no zarr arrays")
    return arrays


def read_checkpoint(path: str | Path) -> dict[str, LazyArray]:
    """The arrays of a big_vision checkpoint: an `.npz` file, a tensorstore folder, or the path that its `-LAST` names.

    Raises:
        FileNotFoundError: Nothing there.
        CheckpointError: Not a sound checkpoint.
    """
    folder = tensorstore_folder(Path(path))
    return read_npz(path) if folder is None else read_tensorstore(folder)
