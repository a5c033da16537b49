"""Tells a file that is not what it claims to be from a disk that cannot be read."""

import errno
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CheckpointError


# What zipfile, zlib, numpy, json and safetensors raise about damaged files. RuntimeError: an encrypted member, an odd
# way of compression (NotImplementedError), nesting without end (RecursionError); MemoryError: sizes that nobody has.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    SafetensorError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    MemoryError,
)
# What the operating system answers to a damaged offset or length; other answers are the disk's fault, or the way there.
ODD_PLACES = (errno.EINVAL, errno.EOVERFLOW)


def is_damage(error: OSError) -> bool:
    """Whether the content of the file is to blame, and not what it lies on."""
    if error.errno is None:  # raised by a library: bz2 has no other error
        return type(error) is OSError
    return error.errno in ODD_PLACES


@contextmanager
def reading(path: object, problem: str = "is damaged") -> Generator[None]:
    """Whatever reading a file raises, as one kind of error that names it.

    Args:
        path: What errors call it.
        problem: What they say of it.

    Raises:
        CheckpointError: Its content is to blame.
        OSError: The disk is, or the right to read it.
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if error.errno is not None and not is_damage(error):
            raise OSError(error.errno, f"cannot read {path}: {error.strerror or error}") from error
        if not is_damage(error):  # a connection that was lost
            raise
        raise CheckpointError(f"{path} {problem}: {error}") from error
    except DAMAGE as error:
        raise CheckpointError(f"{path} {problem}: {error or type(error).__name__}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        CheckpointError: The file holds none.
        OSError: It cannot be read.
    """
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
    return content
