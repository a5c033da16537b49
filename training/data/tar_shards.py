"""WebDataset tar shards, local or behind any fsspec URL.

A sample is the files of one basename: `000123.jpg`, `000123.txt` (a caption a line), `000123.json` (fields).
"""

import json
import random
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from tarfile import HeaderError, ReadError
from typing import TypeVar

import fsspec

from modeling_siglip_ext.images import image_suffixes

from .samples import caption_lines


Member = TypeVar("Member", bound="_Member")
# what a mark at the end raises
_END_OF_ARCHIVE = tarfile.EOFHeaderError  # ty: ignore[missing-attribute]  # typeshed lacks it
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(urls: str | list[str]) -> list[str]:
    """Every shard that `urls` names: a list, a brace range `a-{000..127}.tar`, a glob, `::` between several.

    Raises:
        FileNotFoundError: if a glob finds nothing.
    """
    patterns = urls.split("::") if isinstance(urls, str) else list(urls)
    found = []
    for pattern in patterns:
        brace = _RANGE.search(pattern)
        if brace:
            first, last = brace.groups()
            for number in range(int(first), int(last) + 1):
                found += expand([f"{pattern[: brace.start()]}{number:0{len(first)}}{pattern[brace.end() :]}"])
        elif "*" in pattern or "?" in pattern:
            files = sorted(file.full_name for file in fsspec.open_files(pattern, "rb"))
            if not files:
                raise FileNotFoundError(f"{pattern} matches no shard")
            found += files
        else:
            found.append(pattern)
    return found


class TarShards:
    """A `Source` of `ImageTextStream`: rows `image` (encoded bytes), `caption`, and the fields of a `.json` member.

    Shards are dealt out to the workers of all processes; with fewer shards than workers, every worker reads all shards
    and takes its share of the samples. Each pass goes through its shards in another order.

    Args:
        urls: see `expand`. Remote ones need the fsspec package of their protocol (s3fs, gcsfs, ...).
        seed: of the order of the shards.

    Raises:
        FileNotFoundError: if a glob finds nothing.
    """

    def __init__(self, urls: str | list[str], seed: int = 0):
        self.shards = expand(urls)
        self.seed = seed

    def rows(self, part: int, parts: int, order: int) -> Iterator[tuple[str, dict]]:
        own = self.shards[part::parts] if len(self.shards) >= parts else list(self.shards)
        random.Random(f"{self.seed}/{order}/shards").shuffle(own)
        samples = (sample for shard in own for sample in _rest_is_one_bad_sample(shard))
        if len(self.shards) >= parts:
            yield from samples
            return
        for number, sample in enumerate(samples):
            if number % parts == part:
                yield sample


def _rest_is_one_bad_sample(url: str) -> Iterator[tuple[str, dict]]:
    """A shard, of which the part behind a defect counts as one bad sample."""
    try:
        yield from read_shard(url)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield url, {f"broken shard, {type(error).__name__}: {error}": None}


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


def read_shard(url: str) -> Iterator[tuple[str, dict]]:
    """(name, row) of each sample of one tar file, in its order, read as a stream."""
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
        key, row = None, {}
        for member in archive:
            if not member.isfile():
                continue
            path = PurePosixPath(member.name)
            stem, _, extension = path.name.partition(".")
            if str(path.parent / stem) != key:
                if row:
                    yield f"{url}: {key}", row
                key, row = str(path.parent / stem), {}
            content = archive.extractfile(member)
            assert content is not None  # it is a file
            _add(row, extension.lower(), content.read())
        if row:
            yield f"{url}: {key}", row


def _add(row: dict, extension: str, content: bytes) -> None:
    if f".{extension}" in image_suffixes():
        row["image"] = content
    elif extension in ("txt", "caption", "text"):
        row["caption"] = caption_lines(content.decode("utf-8", errors="replace"))
    elif extension == "json":
        try:
            fields = json.loads(content)
        except ValueError:
            fields = None  # without its caption the sample is skipped and counted
        # an image is a member: a name in its place would open whatever file or address the shard's author chose
        row.update({name: fields[name] for name in fields if name != "image"} if isinstance(fields, dict) else {})
