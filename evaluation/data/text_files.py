"""Text that people wrote: UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one; anything else is named.

A byte-order mark is no part of the text. What is of another encoding is refused instead of guessed: a guess would turn
captions into noise, and nobody would notice.
"""

import codecs
import io
import json
import lzma
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import fsspec


# the longer marks first: UTF-32's begins as UTF-16's does
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def encoding_of(start: bytes) -> str:
    """The encoding that the first bytes of a text say it has."""
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), "utf-8")


def decoded(content: bytes) -> str:
    """A text without its byte-order mark.

    Raises:
        ValueError: it is not in the encoding that it should have; with the place, and the remedy.
    """
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{not_utf8(error)} in line {content[: error.start].count(10) + 1}: save it as UTF-8"
        ) from error


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not {error.encoding.upper()} (byte 0x{error.object[error.start]:02x})"


@contextmanager
def open_text(path: str) -> Generator[TextIO]:
    """Open a text here or behind a URL, compressed or not (.gz, .bz2, .xz); line ends stay as they are.

    Raises:
        ValueError: while it is read: it is not UTF-8, or damaged; named.
    """
    with fsspec.open(path, "rb", compression="infer") as file:
        try:
            start = file.read(4)
            file.seek(0)
            with io.TextIOWrapper(file, encoding_of(start), newline="") as text:
                yield text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} {not_utf8(error)}: save it as UTF-8") from error
        except (*DAMAGED, OSError) as error:
            if getattr(error, "errno", None) is not None or isinstance(error, FileNotFoundError):
                raise  # of the system, not of what is in the file
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text, empty ones too, whichever system wrote it; `str.splitlines` splits captions, too."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def caption_lines(text: str) -> list[str]:
    """The captions in a text, one a line."""
    return [line for line in map(str.strip, lines_of(text)) if line]


def read_text(path: str | PathLike) -> str:
    """A text file.

    Raises:
        ValueError: it is not UTF-8; named.
    """
    try:
        return decoded(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def read_json(path: str | PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is no JSON; named.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
