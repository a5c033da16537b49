"""Tar files with any members, in memory or on disk."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def encoded(number: int = 0, form: str = "PNG") -> bytes:
    """A small image that differs with the number."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256 % 256, 7)).save(content, form)
    return content.getvalue()


def tar_of(members: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """The bytes of a tar file; names may repeat. `mode` as in `tarfile`, "w:gz" compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> str:
    path.write_bytes(tar_of(members, mode))
    return str(path)
