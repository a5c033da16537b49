"""Tells a file that is not what it claims to be from a disk that cannot be read."""

import errno
import json
import lzma
import os
import re
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
ARCHIVES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, SafetensorError)
VALUES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError)
DAMAGE = (*ARCHIVES, *VALUES, EOFError, RuntimeError, MemoryError)
# What the operating system answers to a damaged offset or length; others are the disk's fault, or the way there.
ODD_PLACES = (errno.EINVAL, errno.EOVERFLOW)
OS_ERROR = re.compile(r"os[ _]error[^0-9]{1,20}(\d+)", re.IGNORECASE)  # in the words of safetensors and tensorstore


def fault_of_disk(error: BaseException | None) -> OSError | None:
    """What the operating system said, where that is behind an error and not the content of the file."""
    if error is None:
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (said := OS_ERROR.search(str(error))):
        number = int(said[1])
    if number is None or number in ODD_PLACES:
        return fault_of_disk(error.__cause__ or error.__context__)  # zipfile calls every file that it cannot read bad
    return OSError(number, os.strerror(number))


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
    except (OSError, *DAMAGE) as error:
        fault = fault_of_disk(error)
        if fault is not None:
            raise OSError(fault.errno, f"cannot read {path}: {fault.strerror}") from error
        if isinstance(error, OSError) and error.errno is None and type(error) is not OSError:
            raise  # a connection that was lost; libraries raise plain ones about content
        raise CheckpointError(f"{path} {problem}: {str(error) or type(error).__name__}") from error


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
