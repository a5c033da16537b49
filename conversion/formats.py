"""The formats of checkpoints, and the one place that tells them apart. A new one is a folder and a line in FORMATS."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from .big_vision import checkpoint as big_vision
from .checkpoint import Checkpoint, Choices
from .containers.arrays import Arrays
from .containers.remote import local
from .containers.sources import Source, open_source
from .errors import CheckpointError
from .open_clip import checkpoint as open_clip
from .released.catalogue import find


class Format(Protocol):
    """The module `checkpoint` of a format's folder.

    Args:
        SIGN: What every checkpoint of it has, in words.
        FILES: All that is read of a folder elsewhere that holds the first of them; empty for whole folders.
    """

    SIGN: str
    FILES: tuple[str, ...]

    def claims(self, arrays: Arrays, /) -> bool:
        """Whether these are arrays of this format."""

    def read(self, source: Source, /, *, origin: str | Path, name: str | None, choices: Choices) -> Checkpoint:
        """What a checkpoint holds; see `open_checkpoint`.

        Raises:
            AnotherFileError: Sound, but not the released file that its name says.
            CheckpointError: Not a checkpoint of this format.
        """


FORMATS: dict[str, Format] = {"open_clip": open_clip, "big_vision": big_vision}


def check_known(kind: str | None, name: str | None) -> None:
    """Before anything is fetched: that there is such a format, and such a file in the catalogue.

    Raises:
        ValueError: naming those that there are, or the nearest.
    """
    if kind is not None and kind not in FORMATS:
        raise ValueError(f"unknown kind of checkpoint {kind!r}; known: {', '.join(FORMATS)}")
    if name not in (None, "none"):
        find(name)


def source_at(path: str | Path) -> Source:
    """The container at a path; of a folder with several files the one that a format knows by name."""
    return open_source(path, [known.FILES[0] for known in FORMATS.values() if known.FILES])


def read_checkpoint(
    source: Source,
    *,
    origin: str | Path | None = None,
    kind: str | None = None,
    name: str | None = None,
    choices: Choices | None = None,
) -> Checkpoint:
    """The checkpoint in an opened container; see `open_checkpoint`."""
    fitting = (key for key, known in FORMATS.items() if known.claims(source.arrays))
    kind = kind or next(fitting, None)
    if kind is None:
        names, signs = ", ".join(sorted(source.arrays)[:3]), " and no ".join(each.SIGN for each in FORMATS.values())
        raise CheckpointError(f"{source.name} holds {len(source.arrays)} arrays ({names}, …), but no {signs}")
    return FORMATS[kind].read(source, origin=origin or source.path, name=name, choices=choices or Choices())


def fetched(path: str | Path, scratch: Path | None = None) -> AbstractContextManager[Path]:
    """The path itself, or for a URL that of a copy of what the formats read; see `local`."""
    return local(path, scratch, [known.FILES for known in FORMATS.values() if known.FILES])


@contextmanager
def open_checkpoint(
    path: str | Path,
    *,
    kind: str | None = None,
    name: str | None = None,
    choices: Choices | None = None,
    scratch: Path | None = None,
) -> Generator[Checkpoint]:
    """Open a checkpoint of any format; only its headers are read.

    Args:
        path: A file or folder here, or a URL (`gs://`, `https://`, `hf://`), of which a copy is made for as long as
            the block lasts.
        kind: The format, a key of `FORMATS`; None tells them apart.
        name: The released file that it is, by the name of the catalogue, or "none"; None goes by the path.
        choices: What the file does not tell.
        scratch: Folder with room for the copy; the system's temporary folder unless given.

    Raises:
        FileNotFoundError: Nothing there.
        AnotherFileError: Sound, but not the released file that its name says.
        CheckpointError: Not a sound checkpoint of the format, or of any.
        ValueError: No such kind or name.

    Example:

    ```python
    >>> from modeling_siglip_ext.conversion import convert, open_checkpoint  # doctest: +SKIP
    >>> with open_checkpoint("webli_en_b16_256_60500360.npz") as checkpoint:  # doctest: +SKIP
    ...     convert(checkpoint, "siglip-b16-256")

    ```"""
    check_known(kind, name)
    with fetched(path, scratch) as here:
        yield read_checkpoint(source_at(here), origin=path, kind=kind, name=name, choices=choices)
