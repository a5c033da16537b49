"""Which images and texts belong together besides those of one row, as integers that every process gives alike."""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import torch


def ids_of_values(values: Sequence[Any]) -> torch.Tensor:
    """(B,) int64, equal for equal values of a `pair_column`; a row without one (None, NaN) is a pair of its own."""
    return _hashed([uuid.uuid4().bytes if v is None or v != v else repr(v).encode() for v in values])


def ids_of_texts(input_ids: torch.Tensor) -> torch.Tensor:
    """(B,) int64, equal for texts of equal tokens (B, L): equal, that is, in what the text tower sees of them."""
    return _hashed([row.numpy().tobytes() for row in input_ids])


def _hashed(values: list[bytes]) -> torch.Tensor:
    digests = (hashlib.blake2b(value, digest_size=8).digest() for value in values)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)
