"""An encoder of small files that anybody can check: the vector of a file follows from its bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from modeling_siglip_ext.embedded_files import EncodedFile
from modeling_siglip_ext.file_encoding import read_file


UNREADABLE: set[str] = set()


def vector(content: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(content).digest()[:4], np.uint8).astype(np.float32)


def encode(root: Path, names: Sequence[str], asked: list[str]) -> Iterator[EncodedFile]:
    """A row for each plus sign of a file, at least one; of NaN for the contents "bad" and unreadable names."""
    for name in names:
        asked.append(name)
        file, content = read_file(root, name)
        if name in UNREADABLE or content is None or content == b"bad":
            if content != b"bad" or name in UNREADABLE:
                file = type(file)(file.name, file.size, file.changed)
            yield EncodedFile(file, torch.full((1, 4), torch.nan), "cannot be read")
        else:
            yield EncodedFile(file, torch.from_numpy(vector(content)).repeat(max(1, content.count(b"+")), 1))
