"""What a file of a video says of its own length in bytes: less of it is a download that was broken off.

Its pictures alone do not tell: the length that Matroska states in seconds may be that of the sound, and AVI states it
in an index at the end, which a cut file no longer has.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO


HEAD = 4096
EBML, SEGMENT, RIFF = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"RIFF"


def missing_bytes(file: Any) -> int:
    """How many bytes the outermost element of a Matroska, WebM or AVI file has, which the file lacks; else 0.

    Args:
        file: a path, or an open file of bytes; where it stands stays. Of one that cannot seek nothing is known.
    """
    if isinstance(file, (str, os.PathLike)):
        with Path(file).open("rb") as opened:
            return _missing(opened)
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        return 0
    place = file.tell()
    try:
        return _missing(file)
    finally:
        file.seek(place)


def _missing(file: BinaryIO | BytesIO) -> int:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    end = stated_end(file.read(HEAD))
    return 0 if end is None else max(end - size, 0)


def stated_end(head: bytes) -> int | None:
    """Where the outermost element of a file that begins so ends; None where that is not said.

    An AVI of more than a gigabyte has several, of which this is the first. What is written while it is sent says
    nothing: all ones in Matroska (RFC 8794, section 6.2), nothing or all ones in AVI.
    """
    if head.startswith(RIFF):
        length = int.from_bytes(head[4:8], "little")
        return None if length in (0, 2**32 - 1) else length  # without the 8 bytes here, which some writers count
    if not head.startswith(EBML):
        return None
    length, start = variable_integer(head, len(EBML))
    if length is None or head[start + length : start + length + len(SEGMENT)] != SEGMENT:
        return None
    length, start = variable_integer(head, start + length + len(SEGMENT))
    return None if length is None else start + length


def variable_integer(data: bytes, start: int) -> tuple[int | None, int]:
    """A length of EBML, and where it ends: as many bytes as its first has zeros in front, and one more (RFC 8794, 4).

    None stands for an unknown length, and for bytes that are none.

    Example:

    ```python
    >>> from modeling_siglip_ext.video_files import variable_integer
    >>> variable_integer(bytes([0x40, 0x02]), 0), variable_integer(bytes([0xFF]), 0)
    ((2, 2), (None, 1))

    ```"""
    first = data[start : start + 1]
    if not first or not first[0]:
        return None, start
    count = 9 - first[0].bit_length()
    end = start + count
    value = int.from_bytes(data[start:end], "big") & (1 << 7 * count) - 1
    known = len(data) >= end and value != (1 << 7 * count) - 1
    return (value if known else None), end
