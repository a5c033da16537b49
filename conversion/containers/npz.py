"""`.npz` files, one array at a time in either direction; nothing pickled is ever loaded."""

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ..errors import CheckpointError
from .arrays import LazyArray, as_tensor, check_expansion, chunks, raw_bytes, torch_dtype
from .damage import reading


BLOCK = 1 << 22  # bytes read at once
HEADER = 1 << 14  # bytes of a member that are searched for its header; numpy takes none above 10,000


@dataclass(frozen=True)
class Header:
    """What stands in front of a member's numbers, and how many bytes that takes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """Of the numbers behind it."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def parse_header(start: bytes, member: str) -> Header:
    """The header in a member's first bytes; one that claims to be longer than those is refused by numpy."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{member} holds pickled objects, which are never loaded")
    if any(side < 0 for side in shape):
        raise ValueError(f"{member} claims the shape {shape}")
    return Header(shape, fortran_order, dtype, stream.tell())


def read_member(archive: zipfile.ZipFile, member: str) -> torch.Tensor:
    with archive.open(member) as stream:
        start = stream.read(HEADER)
        header = parse_header(start, member)
        data = np.empty(header.nbytes, np.uint8)
        filled, block = 0, start[header.length :]
        while block:  # to the very end, where zipfile checks the sum over all bytes
            if filled + len(block) > len(data):
                raise ValueError("it is longer than its header says")
            data[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
            filled += len(block)
            block = stream.read(BLOCK)
    if filled < len(data):
        raise EOFError(f"it ends after {filled} of {len(data)} bytes")
    array, shape = data.view(header.dtype), header.shape
    return as_tensor(array.reshape(shape[::-1]).T if header.fortran_order else array.reshape(shape))


def check_name(name: str, seen: set[str]) -> None:
    if name in seen:
        raise ValueError(f"{name} is there twice")
    if "\0" in name or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ValueError(f"{name!r} leads out of the archive")


def index(path: Path, file: IO[bytes] | None) -> dict[str, LazyArray]:
    # stays open with the arrays: opening reads the whole list of members
    archive = zipfile.ZipFile(path if file is None else file)
    size = path.stat().st_size if file is None else file.seek(0, io.SEEK_END)

    def load(member: str) -> torch.Tensor:
        with reading(f"{path}: {member}"):
            return read_member(archive, member)

    arrays: dict[str, LazyArray] = {}
    seen: set[str] = set()
    check_expansion(path, sum(info.file_size for info in archive.infolist()), size)
    for info in archive.infolist():
        check_name(info.orig_filename, seen)
        seen.add(info.orig_filename)
        if not info.filename.endswith(".npy"):
            raise ValueError(f"{info.orig_filename!r} is no array")
        with archive.open(info) as stream:
            header = parse_header(stream.read(HEADER), info.filename)
        if header.length + header.nbytes != info.file_size:
            raise ValueError(f"{info.filename} claims the shape {header.shape}, its {info.file_size} bytes do not fit")
        name = info.filename.removesuffix(".npy")
        arrays[name] = LazyArray(header.shape, lambda member=info.filename: load(member), torch_dtype(header.dtype))
    return arrays


def read_npz(path: str | Path, file: IO[bytes] | None = None) -> dict[str, LazyArray]:
    """The arrays of an `.npz` file by name.

    Args:
        file: The file itself, where it is open already; `path` is then only what errors call it.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not an `.npz` file, a damaged one, one with pickled objects, or an archive bomb.
        OSError: The disk cannot be read.
    """
    path = Path(path)
    if file is None and not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    with reading(path, "is not a sound .npz file"):
        arrays = index(path, file)
    if not arrays:
        raise CheckpointError(f"{path} holds no arrays")
    return arrays


def descriptor(dtype: torch.dtype) -> str:
    """numpy's name of a type in a file's header."""
    if dtype == torch.bfloat16:
        return "|V2"
    return torch.empty(0, dtype=dtype).numpy().dtype.str


class NpzWriter:
    """Writes `np.savez`'s format, each array from blocks that need not be in memory together.

    Example:

    ```python
    >>> import io, numpy as np, torch
    >>> from modeling_siglip_ext.conversion.containers.npz import NpzWriter
    >>> file = io.BytesIO()
    >>> with NpzWriter(file) as writer:
    ...     writer.write("x", (2, 3), torch.float32, (torch.zeros(3) for _ in range(2)))
    >>> _ = file.seek(0)
    >>> np.load(file)["x"].shape
    (2, 3)

    ```"""

    def __init__(self, file: Path | IO[bytes]):
        self.archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def __enter__(self) -> "NpzWriter":
        return self

    def __exit__(self, *_) -> None:
        self.archive.close()

    def write(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, blocks: Iterable[torch.Tensor]) -> None:
        info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes on every run
        with self.archive.open(info, "w", force_zip64=True) as stream:
            header = {"descr": descriptor(dtype), "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            for block in blocks:
                for chunk in chunks(block.contiguous()):
                    stream.write(raw_bytes(chunk.to(dtype)))
