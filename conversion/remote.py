"""Checkpoints at a URL: what fsspec reads (`gs://`, `https://`, `hf://`) is fetched first."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.callbacks import TqdmCallback

from .errors import CheckpointError
from .open_clip import CONFIG, WEIGHTS


OPEN_CLIP = (WEIGHTS, CONFIG)
LIBRARIES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "http": "aiohttp", "https": "aiohttp"}


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def fetch_errors() -> tuple[type[Exception], ...]:
    """What a fetch may raise beside OSError; aiohttp's errors stand apart."""
    try:
        import aiohttp
    except ImportError:
        return (ValueError,)
    return (ValueError, aiohttp.ClientError)


def fetch_folder(filesystem: fsspec.AbstractFileSystem, path: str, target: Path, progress: TqdmCallback) -> None:
    """A folder; of a repository of open_clip only what is read, which is half of it."""
    if not filesystem.exists(f"{path}/{OPEN_CLIP[0]}"):
        filesystem.get(path, str(target), recursive=True, callback=progress)
        return
    target.mkdir()
    for name in OPEN_CLIP:
        if filesystem.exists(f"{path}/{name}"):
            filesystem.get_file(f"{path}/{name}", str(target / name), callback=progress)


def fetch(url: str, folder: Path) -> Path:
    """A copy of a file, or of a folder that a `-LAST` pointer names, in `folder`."""
    protocol = url.split("://", 1)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        library = LIBRARIES.get(protocol, str(error))
        raise CheckpointError(f"{url}: reading {protocol}:// needs another library: pip install {library}") from error
    except ValueError as error:
        raise CheckpointError(f"{url}: {error}") from error
    name = path.rstrip("/").rsplit("/", 1)[-1]
    target = folder / name
    progress = TqdmCallback(tqdm_kwargs={"desc": f"fetching {name}", "unit": "B", "unit_scale": True})
    try:
        if filesystem.exists(f"{path}-LAST"):
            pointer = folder / f"{name}-LAST"
            filesystem.get_file(f"{path}-LAST", str(pointer))
            step = pointer.read_text(errors="replace").strip()
            ends = [end for end in (f"-{step}", f"-{step}-tmp") if step.isalnum() and filesystem.isdir(path + end)]
            if not ends:
                raise CheckpointError(f"{url}-LAST points to a folder that does not exist")
            filesystem.get(path + ends[0], str(folder / (name + ends[0])), recursive=True, callback=progress)
        elif filesystem.isdir(path):
            fetch_folder(filesystem, path, target, progress)
        else:
            filesystem.get_file(path, str(target), callback=progress)
    except CheckpointError:
        raise
    except fetch_errors() as error:
        raise CheckpointError(f"cannot fetch {url}: {error}") from error
    finally:
        progress.close()
    return target


@contextmanager
def local(path: str | Path, scratch: Path | None = None) -> Iterator[Path]:
    """The path itself, or for a URL that of a copy which lives as long as the block.

    Args:
        scratch: Folder with room for the copy; the system's temporary folder unless given.
    """
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield fetch(str(path), Path(folder))
