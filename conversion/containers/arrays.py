"""An array of a checkpoint that is read only when asked for, and the numpy and torch names of its numbers."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CheckpointError


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Values that are cast or compared at once. What is made of so few stays small enough for the allocator to use again;
# freed blocks of tens of megabytes would stay in the process, one beside the other.
CHUNK = 1 << 18
# How much larger than the file its arrays may claim to be. Compressed zeros shrink 1000-fold, but weights do not.
EXPANSION = 50
SLACK = 1 << 30  # bytes that are never held against a file


@dataclass(frozen=True)
class LazyArray:
    """An array that is read when `load` is called; its shape and type are known before.

    `dtype` is None for types that torch does not have; reading those raises CheckpointError.
    """

    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]
    dtype: torch.dtype | None = torch.float32

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        return self.size * (4 if self.dtype is None else self.dtype.itemsize)


Arrays = Mapping[str, LazyArray]


def shape_of(arrays: Arrays, name: str, sides: int | None = None) -> tuple[int, ...]:
    """The shape of an array that must be there, with so many sides.

    Raises:
        CheckpointError: It is missing, has another number of sides, or no elements.
    """
    if name not in arrays:
        raise CheckpointError(f"the checkpoint has no {name}: not an image-text model of a known layout")
    shape = arrays[name].shape
    if sides is not None and len(shape) != sides:
        raise CheckpointError(f"{name} has the shape {shape}, and should have {sides} sides")
    if 0 in shape:
        raise CheckpointError(f"{name} has the shape {shape}, and so no elements: the checkpoint is damaged")
    return shape


def count_values(arrays: Arrays, start: str = "") -> int:
    """Number of values in the arrays whose names start so."""
    return sum(array.size for name, array in arrays.items() if name.startswith(start))


def count_layers(arrays: Arrays, start: str) -> int:
    """Number of layers whose arrays' names start so, followed by the layer's index."""
    pattern = re.compile(rf"{re.escape(start)}(\d+)[./]")
    return 1 + max((int(match[1]) for match in map(pattern.match, arrays) if match), default=-1)


def types_line(arrays: Arrays) -> str:
    """How many arrays there are of each type, in words."""
    dtypes = Counter(str(array.dtype).removeprefix("torch.") for array in arrays.values())
    return ", ".join(f"{number} {name}" for name, number in dtypes.most_common())


def torch_dtype(dtype: np.dtype) -> torch.dtype | None:
    """numpy stores bfloat16 as two raw bytes, `|V2`; tensorstore calls it `bfloat16`."""
    if dtype == np.dtype("V2") or dtype.name == "bfloat16":
        return torch.bfloat16
    return getattr(torch, dtype.name, None) if dtype.kind in "fiub" else None


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same numbers, of the same memory where that is in the machine's order."""
    dtype = torch_dtype(array.dtype)
    if dtype is None:
        raise CheckpointError(f"arrays of type {array.dtype} are not weights")
    array = np.ascontiguousarray(array).reshape(array.shape)  # numpy makes a scalar one-dimensional
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def check_expansion(source: object, claimed: int, stored: int) -> None:
    """Refuse an archive that would unpack to far more than weights can be compressed."""
    if claimed > SLACK and claimed > EXPANSION * stored:
        raise CheckpointError(
            f"{source} holds {stored:,} bytes and claims to unpack to {claimed:,}: no checkpoint shrinks like that"
        )


def chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A contiguous tensor in flat pieces small enough to be copied."""
    yield from tensor.reshape(-1).split(CHUNK)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def all_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # one pass without a copy; a sum can overflow without such a value, but not hide one
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
