"""safetensors files, one tensor at a time in either direction: alone, or as the shards of a model folder.

The library writes a file only from tensors that are all in memory, so the header is written here; every file is read
back with the library before a conversion counts as done.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from io import FileIO
from itertools import accumulate
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open

from ..errors import CheckpointError
from .arrays import LazyArray, all_finite, chunks, raw_bytes
from .damage import read_mapping, reading


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}


def shard_files(folder: Path) -> list[Path]:
    """The files that hold a folder's tensors."""
    index = folder / INDEX
    if not index.is_file():
        single = folder / WEIGHTS
        if not single.is_file():
            raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
        return [single]
    with reading(index):
        names = sorted(set(read_mapping(index)["weight_map"].values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which leads out of the folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing")
    return [folder / name for name in names]


def load(file: Path, opened: safe_open, name: str) -> torch.Tensor:
    with reading(f"{file}: {name}"):
        return opened.get_tensor(name)


def read_safetensors(path: str | Path) -> dict[str, LazyArray]:
    """The tensors of a `.safetensors` file or of a model folder, by name. They are mapped, not copied.

    Raises:
        FileNotFoundError: Nothing there.
        CheckpointError: A damaged file, a missing shard, a name in two shards.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    arrays: dict[str, LazyArray] = {}
    for file in shard_files(path) if path.is_dir() else [path]:
        with reading(file, "is not a sound safetensors file"):
            opened = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if name in arrays:
                    raise CheckpointError(f"{name} stands in two files of {path}")
                part = opened.get_slice(name)
                dtype = TYPES.get(part.get_dtype())
                arrays[name] = LazyArray(tuple(part.get_shape()), partial(load, file, opened, name), dtype)
    return arrays


def header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A file's header, and where each tensor lies in the file (first byte, length)."""
    table: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    lengths = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    starts = dict(zip(lengths, accumulate(lengths.values(), initial=0)))
    for name, start in starts.items():
        offsets = [start, start + lengths[name]]
        table[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shapes[name]), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    places = {name: (8 + len(text) + start, lengths[name]) for name, start in starts.items()}
    return len(text).to_bytes(8, "little") + text, places


def check_room(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """
    Raises:
        OSError: The tensors do not fit the disk; it says how large they are, and the largest one.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if total > free:
        name = max(sizes, key=sizes.__getitem__)
        raise OSError(
            f"the disk is full: the tensors take {total / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; "
            f"the largest is {name} {tuple(shapes[name])}, {sizes[name] / 1e9:,.1f} GB"
        )


class SafetensorsWriter:
    """Writes tensors of known shapes to their places, in any order and in blocks.

    Args:
        folder: An existing folder.
        shapes: Of all tensors, by name.
        dtype: The type they are stored in.
        max_shard_size: E.g. "5GB"; more is written as numbered shards with an index, as `save_pretrained` does.
        filename: Of the only file, where another is wanted; never sharded then.

    Raises:
        OSError: Not enough space: all of it is taken at the start; naming the largest tensor.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        max_shard_size: str = "5GB",
        filename: str | None = None,
    ):
        self.dtype = dtype
        self.files = ExitStack()
        self.places: dict[str, tuple[FileIO, int, int]] = {}
        check_room(folder, shapes, dtype)
        for file, part in self.plan(folder, shapes, max_shard_size, filename).items():
            start, places = header(part, dtype)
            opened = self.files.enter_context(open(folder / file, "xb", buffering=0))  # noqa: SIM115 - the stack closes it
            allocate(opened, max((first + length for first, length in places.values()), default=len(start)))
            write_at(opened, memoryview(start), 0)
            self.places |= {name: (opened, *place) for name, place in places.items()}

    def plan(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], max_shard_size: str, filename: str | None
    ) -> dict[str, dict[str, tuple[int, ...]]]:
        if filename is not None:
            return {filename: dict(shapes)}
        empty = {name: torch.empty(shape, dtype=self.dtype, device="meta") for name, shape in shapes.items()}
        split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        return {file: {name: shapes[name] for name in names} for file, names in split.filename_to_tensors.items()}

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.files.close()

    def write(self, name: str, values: torch.Tensor, block: int = 0, blocks: int = 1) -> bool:
        """Write one of `blocks` equal blocks of a tensor; returns whether all its values are finite as stored."""
        opened, first, length = self.places[name]
        if values.numel() * self.dtype.itemsize * blocks != length:
            raise CheckpointError(f"{name}: {tuple(values.shape)} do not fit, the model has another shape there")
        place = first + block * (length // blocks)
        finite = True
        for chunk in chunks(values.contiguous()):
            stored = chunk.to(self.dtype)
            finite &= all_finite(stored)
            data = raw_bytes(stored)
            write_at(opened, data, place)
            place += len(data)
        return finite


def allocate(opened: FileIO, size: int) -> None:
    """Take the space now, so that a full disk shows before the work and not after it."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        os.posix_fallocate(opened.fileno(), 0, size)
    else:
        opened.truncate(size)


def write_at(opened: FileIO, data: memoryview, place: int) -> None:
    opened.seek(place)
    while data:
        data = data[opened.write(data) :]
