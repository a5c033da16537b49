"""Folders that big_vision writes through tensorstore: one zarr (version 2) array each."""

from pathlib import Path

import numpy as np
import torch

from ..errors import CheckpointError
from .arrays import LazyArray, as_tensor, check_expansion, torch_dtype
from .damage import read_mapping, reading


def newest_folder(path: Path) -> Path | None:
    """The folder of arrays that a big_vision checkpoint path stands for: `<path>-LAST` names the newest one."""
    pointer = path.parent / f"{path.name}-LAST"
    if not pointer.is_file():
        return path if path.is_dir() else None
    step = pointer.read_text(errors="replace").strip()
    if not step.isalnum():
        raise CheckpointError(f"{pointer} should hold the number of a step, not {step[:40]!r}")
    folders = [path.parent / f"{path.name}-{step}{suffix}" for suffix in ("", "-tmp")]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise CheckpointError(f"{pointer} points to {folders[0]}, which does not exist")
    return found


def read_metadata(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type out of an array's `.zarray`."""
    metadata = read_mapping(path)
    with reading(path):
        shape = tuple(int(side) for side in metadata["shape"])
        name = str(metadata["dtype"])
        dtype = np.dtype("V2") if name == "bfloat16" else np.dtype(name)
        if any(side < 0 for side in shape):
            raise ValueError(f"it claims the shape {shape}")
    return shape, dtype


def read_tensorstore(folder: str | Path) -> dict[str, LazyArray]:
    """The arrays of a tensorstore folder by name; `/` in names is written as `~` there.

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
        with reading(path):
            return as_tensor(tensorstore.open(spec).result().read().result())

    arrays = {}
    claimed = 0
    for metadata in sorted(folder.glob("*/.zarray")):
        shape, dtype = read_metadata(metadata)
        claimed += int(np.prod(shape, dtype=object)) * dtype.itemsize
        name = metadata.parent.name.replace("~", "/")
        arrays[name] = LazyArray(shape, lambda path=metadata.parent: load(path), torch_dtype(dtype))
    if not arrays:
        raise CheckpointError(f"{folder} holds no zarr arrays")
    check_expansion(folder, claimed, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    return arrays
