"""Embeddings of files that come, change and go: only what is new is computed, whenever the last run was stopped.

Each part says of its rows which file they are of, so the parts are all the state there is, and each of them is
replaced whole. Rows of files that are gone or other by now are dropped first, then new ones fill the parts that have
room, then new parts: at any moment a file has the rows of one state of its contents, or none.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from . import embedding_store as store
from .embedding_parts import Notes, read_embeds, read_notes, write_part
from .encoding import ahead, evaluating, progress_bar
from .files import new_file, read_json, remove_abandoned, write_json


AGAIN = "run `siglip-ext-eval embed` again, which goes on where it was"
READERS = 8  # threads that only read and hash


@dataclass(frozen=True)
class File:
    """What tells a file's contents from others.

    Args:
        name: below its folder, with slashes.
        size: in bytes.
        changed: the time of its last change, in nanoseconds since 1970.
        content: a hash; None where it could not be read, so that the next run tries again.
    """

    name: str
    size: int
    changed: int
    content: str | None = None


@dataclass(frozen=True)
class EncodedFile:
    """The embeddings (rows, D) float32 of a file, one row of NaN where it cannot be read, and what is known of them.

    Args:
        columns: further values of each row, by the names of `embedding_parts.COLUMN_TYPES`.
    """

    file: File
    embeds: torch.Tensor
    error: str | None = None
    columns: Mapping[str, Sequence] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """Files of a folder by what became of them since the last run; moved ones kept their contents under a new name."""

    new: int
    changed: int
    moved: int
    deleted: int
    unchanged: int


def stat_file(root: Path, name: str) -> File | None:
    """None where it is gone by now."""
    try:
        about = os.stat(root / name)
    except OSError:
        return None
    return File(name, about.st_size, about.st_mtime_ns)


def hash_file(root: Path, file: File) -> File:
    """The same with the hash of its contents, if it can be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(root / file.name, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError:
        return file
    return replace(file, content=digest.hexdigest())


def update(
    folder: Path,
    settings: Mapping[str, Any],
    root: Path,
    names: Iterable[str],
    encode: Callable[[Sequence[str]], Iterator[EncodedFile]],
    model: nn.Module,
    *,
    form: str = "parquet",
    part_files: int = 4096,
    what: str = "images",
    check_contents: bool = False,
) -> Changes:
    """Bring the embeddings in `folder` up to date with files; returns when every process is done.

    A file whose name, size and time of change are those of before is not opened. One of a known size is read and
    hashed; where its contents are known, it keeps its rows, under a new name too. All others are given to `encode`.

    Args:
        folder: made if it is missing.
        settings: all that an embedding depends on besides its file.
        root: the folder of the files, and `names` all that are in it.
        encode: names to their embeddings, in order.
        form: "parquet" or "safetensors".
        part_files: files in one part; a folder that was begun keeps its own number.
        what: the files in a word, for people.
        check_contents: hash every file, also those whose size and time of change are as before.

    Raises:
        ValueError: the folder was begun with other settings, or holds other files and none of these; nothing is
            changed then.
    """
    store.check_part_rows(part_files)
    rank, world = store.processes()
    if rank == 0:
        remove_abandoned(folder)
        begun = store.begun(folder, {**settings, "part_files": part_files, "form": form}, "choose another folder")
        parts = {path: read_notes(path) for path in store.part_paths(folder, begun)}
        known = {name: file for notes in parts.values() for name, file in files_of(notes).items()}
        keep, fresh = compare(root, names, known, check_contents)
        if known and not keep and not known.keys() & set(fresh):
            raise ValueError(f"{folder} holds embeddings of files that are not in {root}: choose another folder")
        left = {path: drop(path, notes, keep) for path, notes in parts.items()}
        changed = len(known.keys() & set(fresh))
        moved = sum(name != file.name for name, file in keep.items())
        changes = Changes(len(fresh) - changed, changed, moved, len(known) - len(keep) - changed, len(keep) - moved)
        write_json(folder / store.PLAN, {"changes": asdict(changes), "parts": fill(folder, left, fresh, begun)})
    store.wait_for_all()
    plan = read_json(folder / store.PLAN, AGAIN)
    mine = list(plan["parts"].items())[rank::world]
    total = sum(len(files) for _, files in mine)
    with evaluating(model), progress_bar(total, what) as bar:
        for name, files in mine:
            extend(folder / name, encode(files), bar)
    store.wait_for_all()
    if rank == 0:
        (folder / store.PLAN).unlink()
    return Changes(**plan["changes"])


def files_of(notes: Notes) -> dict[str, File]:
    """The files of a part's rows, by name."""
    columns = (notes.columns[name] for name in ("size", "changed", "content"))
    return {name: File(name, *about) for name, *about in zip(notes.names, *columns) if name is not None}


def compare(
    root: Path, names: Iterable[str], known: Mapping[str, File], check_contents: bool
) -> tuple[dict[str, File], list[str]]:
    """Which known files keep their rows, with what these say from now on, and the names of those to be embedded."""
    keep: dict[str, File] = {}
    others: list[File] = []
    for file in (file for name in names if (file := stat_file(root, name)) is not None):
        old = known.get(file.name)
        same = old is not None and old.content is not None and (old.size, old.changed) == (file.size, file.changed)
        if old is not None and same and not check_contents:
            keep[file.name] = old
        else:
            others.append(file)
    present = {*keep, *(file.name for file in others)}
    gone: defaultdict[str | None, list[str]] = defaultdict(list)
    for name in sorted(known.keys() - present):
        gone[known[name].content].append(name)
    sizes = {known[name].size for name in known.keys() - keep.keys()}
    fresh = [file.name for file in others if file.size not in sizes]
    likely = [file for file in others if file.size in sizes]
    for file in ahead(partial(hash_file, root), likely, READERS, 4 * READERS):
        old = known.get(file.name)
        if file.content is None:
            fresh.append(file.name)
        elif old is not None and old.content == file.content:
            keep[file.name] = file
        # a name that has rows itself takes no others: while both stand there, nobody could tell which are right
        elif old is None and gone[file.content]:
            keep[gone[file.content].pop()] = file
        else:
            fresh.append(file.name)
    return keep, sorted(fresh)


def drop(path: Path, notes: Notes, keep: Mapping[str, File]) -> int:
    """Leave of a part the rows of files that keep them; how many files these are."""
    files = files_of(notes)
    left = {name: keep[name] for name in files if name in keep}
    if not left:
        path.unlink()
    elif left != files:
        rows = rows_of(path, notes)
        write(path, [replace(rows[name], file=file) for name, file in left.items()])
    return len(left)


def fill(
    folder: Path, left: Mapping[Path, int], fresh: list[str], settings: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Which part gets which of the new files: those with room first, then new ones."""
    most = int(settings["part_files"])
    room = {path.name: most - count for path, count in left.items() if 0 < count < most}
    number = max(map(store.part_number, left), default=-1) + 1
    parts, place = {}, 0
    while place < len(fresh):
        if room:
            name = next(iter(room))
            count = room.pop(name)
        else:
            name, count = store.part_path(folder, number, settings["form"]).name, most
            number += 1
        parts[name] = fresh[place : place + count]
        place += count
    return parts


def extend(path: Path, encoded: Iterable[EncodedFile], bar: tqdm) -> None:
    """Add the rows of files to a part, which is made if it is missing."""
    files = list(rows_of(path, read_notes(path)).values()) if path.exists() else []
    for one in encoded:
        files.append(one)
        bar.update()
    write(path, files)


def rows_of(path: Path, notes: Notes) -> dict[str, EncodedFile]:
    """The files of a part with their rows."""
    embeds = read_embeds(path)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(notes.names):
        places[str(name)].append(place)
    further = {name: values for name, values in notes.columns.items() if name not in ("size", "changed", "content")}
    return {
        name: EncodedFile(
            file,
            embeds[places[name]],
            notes.errors.get(places[name][0]),
            {column: [values[place] for place in places[name]] for column, values in further.items()},
        )
        for name, file in files_of(notes).items()
    }


def write(path: Path, files: Sequence[EncodedFile]) -> None:
    """A part of these files, in place of what was there."""
    rows = [one for one in files for _ in one.embeds]
    errors = {row: one.error for row, one in enumerate(rows) if one.error is not None}
    columns: dict[str, list] = {
        "size": [one.file.size for one in rows],
        "changed": [one.file.changed for one in rows],
        "content": [one.file.content for one in rows],
    }
    for column in files[0].columns:
        columns[column] = [value for one in files for value in one.columns[column]]
    notes = Notes(errors, [one.file.name for one in rows], columns)
    with new_file(path, replace=True) as draft:
        write_part(draft, 0, torch.cat([one.embeds for one in files]), notes)
