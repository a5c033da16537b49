"""Checkpoints at a URL: what fsspec reads (`gs://`, `https://`, `hf://`) is fetched first."""

import errno
import logging
import os
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec
from fsspec.callbacks import TqdmCallback
from tqdm.auto import tqdm

from ..errors import CheckpointError


EXTRA = ("gs", "gcs", "http", "https")  # what the extra `remote` has libraries for
PART = 1 << 16  # bytes asked for at once of a file that is read where it lies
Wanted = Collection[tuple[str, ...]]  # of a folder that holds the first file of one of these, only those files
LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk here, not of the other side


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def fetch_errors(protocol: str) -> tuple[type[Exception], ...]:
    """What a fetch may raise beside OSError: every client has errors of its own."""
    if protocol == "hf":
        from huggingface_hub.errors import HfHubHTTPError

        # the client is httpx or its successor, by huggingface_hub's version; this is the base of its errors
        kinds = (kind for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith("httpx"))
        client = [kind for kind in kinds if issubclass(kind, Exception)]
        return tuple(client[-1:])
    if protocol not in EXTRA:
        return ()
    import aiohttp

    if protocol in ("http", "https"):
        return (aiohttp.ClientError,)
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return (aiohttp.ClientError, HttpError, GoogleAuthError)


def open_filesystem(url: str, protocol: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the path in it."""
    # gcsfs asks for the type of every bucket, which needs credentials and warns where there are none
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if protocol in ("gs", "gcs") and "GCSFS_DEBUG" not in os.environ:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of the errors that it raises
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        wanted = "pip install 'siglip-ext[remote]'" if protocol in EXTRA else str(error)
        raise CheckpointError(f"{url}: reading {protocol}:// needs another library: {wanted}") from error
    except ValueError as error:
        raise CheckpointError(f"{url}: {error}") from error


@contextmanager
def connected(url: str) -> Generator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of a URL and the path in it; errors name the URL."""
    protocol = url.split("://", 1)[0]
    filesystem, path = open_filesystem(url, protocol)
    try:
        yield filesystem, path
    except FileNotFoundError as error:
        reason = error.__cause__  # fsspec calls a file absent whatever kept it from asking for its size
        refused = protocol in ("http", "https") and isinstance(reason, fetch_errors(protocol))
        if refused and getattr(reason, "status", None) != HTTPStatus.NOT_FOUND:
            raise CheckpointError(f"cannot fetch {url}: {str(reason) or type(reason).__name__}") from error
        raise FileNotFoundError(f"{url} does not exist") from error
    except (OSError, *fetch_errors(protocol)) as error:
        if getattr(error, "errno", None) in LOCAL_FAULTS:
            raise
        raise CheckpointError(f"cannot fetch {url}: {str(error) or type(error).__name__}") from error


def copy_folder(filesystem: fsspec.AbstractFileSystem, path: str, target: Path, wanted: Wanted) -> None:
    """A folder, or what is wanted of it."""
    root = path.rstrip("/") + "/"
    names = next((names for names in wanted if filesystem.exists(root + names[0])), None)
    chosen = [root + name for name in names or () if filesystem.exists(root + name)]
    files = filesystem.find(path) if names is None else chosen
    target.mkdir()
    for file in tqdm(files, desc=f"fetching {target.name}", unit="file"):
        inside = PurePosixPath(file.removeprefix(root))
        if not file.startswith(root) or inside.is_absolute() or ".." in inside.parts:
            raise CheckpointError(f"{file} leads out of {path}")
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(file, str(target / inside))


def copy_any(filesystem: fsspec.AbstractFileSystem, path: str, folder: Path, wanted: Wanted) -> Path:
    """A file, a folder, or the folder that a `-LAST` pointer names."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    target = folder / name
    if filesystem.exists(f"{path}-LAST"):
        pointer = folder / f"{name}-LAST"
        filesystem.get_file(f"{path}-LAST", str(pointer))
        step = pointer.read_text(errors="replace").strip()
        ends = [end for end in (f"-{step}", f"-{step}-tmp") if step.isalnum() and filesystem.isdir(path + end)]
        if not ends:
            raise CheckpointError(f"{path}-LAST points to a folder that does not exist")
        copy_folder(filesystem, path + ends[0], folder / (name + ends[0]), wanted)
    elif filesystem.isdir(path):
        copy_folder(filesystem, path, target, wanted)
    else:
        with TqdmCallback(tqdm_kwargs={"desc": f"fetching {name}", "unit": "B", "unit_scale": True}) as progress:
            filesystem.get_file(path, str(target), callback=progress)
    return target


def fetch(url: str, folder: Path, wanted: Wanted) -> Path:
    """A copy, in `folder`, of a file, a folder, or the folder that a `-LAST` pointer names.

    Raises:
        FileNotFoundError: Nothing there.
        CheckpointError: It cannot be read, or a library is missing.
        OSError: No room for it here.
    """
    with connected(url) as (filesystem, path):
        try:
            return copy_any(filesystem, path, folder, wanted)
        except CheckpointError:
            raise
        except ValueError as error:  # of a name that a file system cannot have
            raise CheckpointError(f"cannot fetch {url}: {error}") from error


@contextmanager
def opened(url: str) -> Generator[IO[bytes] | None]:
    """A file that is read where it lies, so that only the parts that are asked for travel; None where the other side
    gives no parts."""
    with connected(url) as (filesystem, path), filesystem.open(path, "rb", block_size=PART) as file:
        yield None if getattr(file, "size", None) is None else file


@contextmanager
def local(path: str | Path, scratch: Path | None = None, wanted: Wanted = ()) -> Generator[Path]:
    """The path itself, or for a URL that of a copy which lives as long as the block.

    Args:
        scratch: Folder with room for the copy, to be made later perhaps; the system's temporary folder unless given.
        wanted: The first of each names a folder by a file in it; of that folder only these files are fetched.
    """
    if not is_url(path):
        yield Path(path)
        return
    if scratch is not None:  # the nearest folder that is there, on the same disk
        scratch = next(folder for folder in (scratch, *scratch.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield fetch(str(path), Path(folder), wanted)
