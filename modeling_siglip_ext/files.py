"""Folders and files that appear complete or not at all, whatever happens to the process that writes them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows: what a killed run left is not found there
    fcntl = None

DRAFT = ".part"


def lock(folder: Path) -> int | None:
    """Mark a draft as in use for as long as this process lives; None where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(out: Path) -> None:
    """Delete the drafts of `out` whose process was killed."""
    for draft in out.parent.glob(f".{out.name}.*{DRAFT}"):
        descriptor = lock(draft)
        if descriptor is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def drafts(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone at the end.

    Raises:
        FileExistsError: `out` exists.
        OSError: There may be no folder there.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another name or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            remove_abandoned(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=DRAFT, dir=out.parent))
    except OSError as error:
        raise type(error)(error.errno, f"cannot write in {out.parent}: {error.strerror}") from error
    descriptor = None if fcntl is None else lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file's contents are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends without an error.

    Raises:
        FileExistsError: `out` exists.
    """
    out = Path(out)
    with drafts(out) as draft:
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                flush(path)
        os.chmod(draft, 0o755)  # mkdtemp makes it private
        os.rename(draft, out)


@contextmanager
def new_file(out: str | Path) -> Iterator[Path]:
    """A path to write to that becomes `out` when the block ends without an error.

    Raises:
        FileExistsError: `out` exists.
    """
    out = Path(out)
    with drafts(out) as draft:
        path = draft / out.name
        yield path
        flush(path)
        os.rename(path, out)
