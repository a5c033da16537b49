"""Text, JSON, files and folders that appear complete or not at all, whatever happens to the process that writes them.

A draft is written into a hidden folder beside the target, flushed to disk, and renamed.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any


try:
    import fcntl
except ImportError:  # Windows: what a killed run left is not found there
    fcntl = None

DRAFT = ".part"


def check_output_dir(folder: str | None, name: str = "output_dir") -> None:
    """Whether a folder can be written to, before what is written there is computed.

    Args:
        name: what people call it.

    Raises:
        OSError: it is a file, or may not be written to.
        ValueError: its name is empty.
    """
    if not folder:
        raise ValueError(f"{name} is empty: name the folder to write to")
    path = Path(folder)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{name}={folder!r}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={folder!r}: nothing may be written in {there}; choose another folder")


def check_output_file(file: str, name: str = "output_file") -> None:
    """As `check_output_dir`, of a file.

    Raises:
        OSError: it is a folder, or its own folder cannot be written to.
        ValueError: its name is empty.
    """
    if not file:
        raise ValueError(f"{name} is empty: name the file to write")
    if Path(file).is_dir():
        raise IsADirectoryError(f"{name}={file!r} is a folder: name a file in it")
    check_output_dir(str(Path(file).absolute().parent), name)


def lock(folder: Path) -> int | None:
    """Mark a draft as in use for as long as this process lives; None where another process has it or removed it.

    Raises:
        OSError: the system or its files know no locks, or the draft is somebody else's.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no locks of files")
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():  # it may have been removed while it was opened here
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def new_draft(out: Path) -> tuple[Path, int | None]:
    """A hidden folder beside `out`, and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=DRAFT, dir=out.parent))
        try:
            descriptor = lock(folder)
        except OSError:
            return folder, None
        if descriptor is not None:
            return folder, descriptor
        # another writer of `out` took it for abandoned before it was locked


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Delete the drafts in a folder whose process was killed: all, or those of one name."""
    for draft in folder.glob(f".{escape(name)}.*{DRAFT}" if name else f".*{DRAFT}"):
        try:
            descriptor = lock(draft)
        except OSError:
            continue
        if descriptor is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def drafts(out: Path, replace: bool) -> Generator[Path]:
    """A folder beside `out`, gone at the end.

    Raises:
        FileExistsError: `out` exists and is not to be replaced.
        OSError: There may be no folder there.
    """
    if out.exists() and not replace:
        raise FileExistsError(f"{out} exists; choose another name or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out.parent, out.name)
        folder, descriptor = new_draft(out)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write in {out.parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file's contents are on the disk."""
    # Windows flushes only what is open for writing; elsewhere a file may be there to be read alone
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """`flush` for all files in a folder and below."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush(path)


@contextmanager
def new_folder(out: str | Path) -> Generator[Path]:
    """A folder to write into that becomes `out` when the block ends without an error.

    Raises:
        FileExistsError: `out` exists.
    """
    out = Path(out)
    with drafts(out, replace=False) as draft:
        yield draft
        os.chmod(draft, 0o755)  # mkdtemp makes it private
        flush_all(draft)
        try:
            os.rename(draft, out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was quicker
                raise FileExistsError(f"{out} exists by now; choose another name or remove it") from error
            raise


@contextmanager
def new_file(out: str | Path, *, replace: bool = False) -> Generator[Path]:
    """A path to write to that becomes `out` when the block ends without an error.

    Args:
        out: the file; its folder is made.
        replace: whether it may take the place of an older one, which stays whole until then.

    Raises:
        FileExistsError: `out` exists and `replace` is not set.
    """
    out = Path(out)
    with drafts(out, replace) as draft:
        path = draft / out.name
        yield path
        flush(path)
        os.replace(path, out)


def put_in_place(folder: Path, out: Path) -> None:
    """Rename a complete folder to its final name, in place of an older one of that name; on disk before it is seen."""
    flush_all(folder)
    older = folder.with_name(f"{out.name}.replaced")
    if out.exists():
        shutil.rmtree(older, ignore_errors=True)
        out.rename(older)
    try:
        folder.rename(out)
    except OSError:
        if older.exists():
            older.rename(out)
        raise
    shutil.rmtree(older, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, in place of what was there."""
    with new_file(path, replace=True) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping[str, Any] | list) -> None:
    """Write indented JSON, in place of what was there."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """A JSON mapping.

    Raises:
        FileNotFoundError: there is none; with the remedy.
        ValueError: the file is damaged; with the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no mapping): {remedy}")
    return content
