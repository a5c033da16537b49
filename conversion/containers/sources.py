"""Opens a checkpoint of any container."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .arrays import LazyArray
from .npz import read_npz
from .safetensors_files import INDEX, WEIGHTS, read_safetensors
from .tensorstore_folder import newest_folder, read_tensorstore


PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BLOCK = 1 << 22


@dataclass(frozen=True)
class Source:
    """A checkpoint: where it lies on this machine, the name it came under, and its arrays."""

    path: Path
    name: str
    arrays: dict[str, LazyArray]


def sha256(path: Path) -> str:
    """Of a file; of a folder, over the names and contents of its files in order."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def open_source(path: str | Path, known: Sequence[str] = ()) -> Source:
    """The arrays of a checkpoint: an `.npz` or `.safetensors` file, a folder with safetensors of one model, a
    tensorstore folder, or the path that its `-LAST` names.

    Args:
        known: Names of files that hold a whole model, whatever lies beside them.

    Raises:
        FileNotFoundError: Nothing there.
        CheckpointError: Not a sound checkpoint.
    """
    path = Path(path)
    if path.suffix in PICKLED:
        raise CheckpointError(f"{path} is a pickle, which is never loaded; save the tensors as .safetensors")
    if path.suffix == ".safetensors":
        return Source(path, path.name, read_safetensors(path))
    folder = newest_folder(path)
    if folder is None:
        return Source(path, path.name, read_npz(path))
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        return Source(folder, path.name, read_safetensors(folder))
    files = sorted(folder.glob("*.safetensors"))  # under names of their own
    files = [file for file in files if file.name in known] or files
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {', '.join(file.name for file in files[:5])}: name the file that is meant"
        )
    if files:
        return Source(files[0], path.name, read_safetensors(files[0]))
    return Source(folder, path.name, read_tensorstore(folder))
