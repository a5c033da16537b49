"""Tar files of samples (WebDataset, img2dataset), local or behind any fsspec URL, compressed or not.

What cannot be used is a row, too, with the reason under `DROPPED`: whoever reads counts it. Where it is more than half
of a file, the file is an error: it was made in another way than its reader thinks.
"""

import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from tarfile import HeaderError, ReadError
from typing import TypeVar

import fsspec

from .samples_of_members import DROPPED, Samples, is_part
from .sources import is_hidden


Member = TypeVar("Member", bound="_Member")
# what a mark at the end raises
_END_OF_ARCHIVE = tarfile.EOFHeaderError  # ty: ignore[missing-attribute]  # typeshed lacks it
# TypeError: where a gzip header ends early, `tarfile` takes no byte for one
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, TypeError)
MOST_DROPPED = 0.5
NAMED = 5


class TooManyBadSamples(ValueError):
    """More samples are bad than the limit allows."""


class _Member(tarfile.TarInfo):
    """A header that must be there: `tarfile` takes a missing, cut or garbled one for the end of the archive."""

    @classmethod
    def fromtarfile(cls: type[Member], tarfile: tarfile.TarFile) -> Member:
        try:
            return super().fromtarfile(tarfile)
        except _END_OF_ARCHIVE:
            raise
        except HeaderError as error:
            raise ReadError(f"cut short at byte {tarfile.offset}: {error}") from error

    def _block(self, count: int) -> int:
        if count < 0:  # `tarfile` would go back, and on for ever
            raise ReadError("a member of negative size")
        return super()._block(count)  # ty: ignore[missing-attribute]  # typeshed lacks it, too


def read_shard(url: str, *, once: bool = False) -> Iterator[tuple[str, dict]]:
    """(name, row) of each sample of one tar file, read as a stream: `image` (encoded bytes), `caption` (list of str),
    the fields of a `.json` member, `cls` and `npy`. What is no sample has its reason under `DROPPED`; the part of a
    file behind a defect is one such row.

    Args:
        once: what is read is kept: a failure of the system, which may pass, is no defect of the file then.

    Raises:
        OSError: such a failure.
    """
    samples, found = Samples(), False
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir() or is_hidden(member.name) or not is_part(path):
                    continue
                found = True
                if not member.isfile():
                    reason = "is a link and no file: pack with tar --dereference --hard-dereference"
                    yield f"{url}: {path}", {DROPPED: reason}
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield from named(url, samples.add(path, content.read()))
    except BROKEN as error:
        if once and is_of_the_system(error):
            raise
        yield from named(url, samples.rest())
        yield url, {DROPPED: f"broken shard, {type(error).__name__}: {error}"}
        return
    yield from named(url, samples.rest())
    if not found:
        yield url, {DROPPED: "holds no image and no caption"}


def is_of_the_system(error: Exception) -> bool:
    """Whether reading failed, and not what was read: a damaged gzip or bzip2 file is an OSError without a number."""
    return isinstance(error, OSError) and (
        error.errno is not None or isinstance(error, (TimeoutError, ConnectionError))
    )


def named(url: str, samples: Iterable[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    return ((f"{url}: {key}", row) for key, row in samples)


def why_unusable(row: dict) -> str | None:
    """Why a row of a shard is no image with something said of it."""
    if DROPPED in row:
        return row[DROPPED]
    if "image" not in row:
        return f"no image, only {', '.join(row)}"
    return None if len(row) > 1 else "an image alone, without .txt or .json of its name"


def checked(
    url: str, samples: Iterable[tuple[str, dict]], *, images_alone: bool = False
) -> Iterator[tuple[str, dict]]:
    """The rows of a shard, unless most of them cannot be used.

    Args:
        images_alone: whether an image with nothing beside it is of use.

    Raises:
        TooManyBadSamples: at the end, where more than `MOST_DROPPED` of them cannot; naming the first.
    """
    total, bad = 0, []
    for name, row in samples:
        if name != url:  # of which it is one sample that something is wrong with
            total += 1
            reason = why_unusable(row)
            if reason and not (images_alone and row.keys() == {"image"}):
                bad.append(f"{name.removeprefix(url + ': ')}: {reason}" if len(bad) < NAMED else "")
        yield name, row
    if len(bad) > MOST_DROPPED * total:
        raise TooManyBadSamples(
            f"{url}: {len(bad)} of {total} samples cannot be used. A sample is an image and its .txt or .json, of one "
            f"name and near each other (tar --sort=name). The first: {'; '.join(filter(None, bad))}"
        )
