"""Embeddings on disk in parts: what was computed is kept when a run is stopped, and shared between tasks.

A folder holds what its embeddings depend on, and parts of consecutive rows with the reasons why some are missing. Its
number of rows is settled when it is begun, or else its parts come and go with their files (`embedded_files.py`).

Under torchrun every process computes each n-th part; the first one reads all of them.
"""

import atexit
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import logging

from siglip_ext_runtime import ExportedModel

from .embedding_parts import FORMS, MISSING, Notes, read_embeds, read_notes, write_part
from .encoding import EncodedBatch, evaluating, joined, progress_bar
from .files import new_file, read_json, write_json


logger = logging.get_logger(__name__)
# readers of Parquet folders pass over names that begin so
SETTINGS = "_settings.json"
# what is to be computed of files, for all processes of a run; there while it goes on, or where it was stopped
PLAN = "_plan.json"
# Settings that say how the embeddings are kept and what people call their model, not what they are.
NOT_CONTENT = ("part_rows", "part_files", "model")
# Of a tower's configuration what its weights do not tell.
BESIDE_WEIGHTS = ("hidden_act", "num_attention_heads", "layer_norm_eps")
# For another process' part, of which nobody knows how long it takes.
WAIT = timedelta(days=365)


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun tells."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all() -> None:
    """Return when every process of torchrun has come here."""
    if processes()[1] > 1:
        if not dist.is_initialized():
            dist.init_process_group(timeout=WAIT)
            # before the interpreter goes down, and with it the threads of the group
            atexit.register(leave)
        # A sum on the host: `barrier` would go through the accelerators, where processes may share one.
        dist.all_reduce(torch.zeros(()))


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def weights_fingerprint(model: nn.Module | ExportedModel) -> str:
    """A hash of all weights, their names and what else a tower computes by; of an exported model, of its files."""
    if isinstance(model, ExportedModel):
        return model.fingerprint()
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(settings_of_towers(model)).encode())
    return digest.hexdigest()


def settings_of_towers(model: nn.Module) -> list[Any]:
    """What weights do not tell of a model's towers, the same for our classes and the stock ones."""
    config = getattr(model, "config", None)
    towers = [getattr(config, f"{tower}_config", None) for tower in ("vision", "text")]
    usual = ("map", "last", None)  # as the stock towers pool, which have no word for it
    found = []
    for tower in [tower for tower in towers if tower is not None] or [config]:
        pooling = getattr(tower, "pooling", None)
        found.append([getattr(tower, name, None) for name in BESIDE_WEIGHTS])
        found[-1].append(None if pooling in usual else pooling)
    # of towers from elsewhere the pair says it
    return [*found, *(getattr(config, name, None) for name in ("vision_pooling", "text_pooling"))]


def fingerprint(settings: Mapping) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def compute(
    folder: Path,
    settings: Mapping,
    count: int,
    encode: Callable[[int, int], Iterator[EncodedBatch]],
    model: nn.Module,
    *,
    form: str = "safetensors",
    part_rows: int = 4096,
    what: str = "inputs",
    remedy: str = "choose another folder",
) -> None:
    """Write the parts that are missing in `folder`; returns when every process is done.

    Args:
        folder: made if it is missing.
        settings: all that the embeddings depend on; kept in `_settings.json`.
        count: rows in all.
        encode: first and last row (exclusive) to the batches of embeddings between them.
        form: "safetensors" or "parquet".
        part_rows: rows in one file; a folder that was begun keeps its own number.
        what: the inputs in a word, for people.
        remedy: of the error, for people.

    Raises:
        ValueError: the folder holds embeddings made with other settings, or `part_rows` is no number of rows; then
            nothing is written.
    """
    check_part_rows(part_rows)
    rank, world = processes()
    settings = begun(folder, {**settings, "rows": count, "part_rows": part_rows, "form": form}, remedy)
    rows = int(settings["part_rows"])
    firsts = range(0, count, rows)
    parts = [(path, first, min(count, first + rows)) for path, first in zip(part_paths(folder, settings), firsts)]
    missing = [part for part in parts[rank::world] if not part[0].exists()]
    total = sum(last - first for _, first, last in missing)
    with evaluating(model), progress_bar(total, what) as bar:
        for path, first, last in missing:
            found = joined(encode(first, last), bar)
            if (count := len(found.embeds)) != last - first:
                raise RuntimeError(f"{count} embeddings came for the {last - first} {what} of {path.name}")
            with new_file(path, replace=True) as draft:
                write_part(draft, first, found.embeds, Notes(found.errors))
    wait_for_all()


def begun(folder: Path, settings: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The settings of a folder: those it was begun with, or these, which the first process writes there.

    Raises:
        ValueError: it was begun with others.
    """
    if (folder / SETTINGS).exists():
        saved = read_settings(folder, MISSING)
        expected = {**dict.fromkeys(saved), **settings}
        check_settings(folder, {name: expected[name] for name in expected if name not in NOT_CONTENT}, remedy)
        return saved  # the parts that are there are cut in its way
    if processes()[0] == 0:
        write_json(folder / SETTINGS, settings)
    return dict(settings)


def check_part_rows(part_rows: int) -> None:
    """
    Raises:
        ValueError: it is not a positive whole number.
    """
    if not isinstance(part_rows, int) or part_rows < 1:
        raise ValueError(f"part_rows must be a positive whole number, got {part_rows}")


def read_settings(folder: Path, missing: str) -> dict[str, Any]:
    """What is written of the embeddings in a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: the file is damaged.
    """
    there = (folder / SETTINGS).exists()
    settings = read_json(folder / SETTINGS, f"delete {folder}, then {missing}" if there else missing)
    sizes = ("part_files",) if grows(settings) else ("rows", "part_rows")
    whole = all(isinstance(settings.get(name), int) for name in sizes) and settings[sizes[-1]] > 0
    if not whole or settings.get("form") not in FORMS:
        raise ValueError(f"{folder / SETTINGS} is damaged: delete {folder}, then {missing}")
    return settings


def grows(settings: Mapping[str, Any]) -> bool:
    """Whether a folder's rows are those of the parts that are there, which come and go with their files."""
    return "part_files" in settings


def part_paths(folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    form = settings["form"]
    if grows(settings):
        return sorted(folder.glob(f"part-[0-9]*.{form}"), key=part_number)
    count = -(-settings["rows"] // settings["part_rows"])
    return [part_path(folder, part, form) for part in range(count)]


def part_path(folder: Path, number: int, form: str) -> Path:
    return folder / f"part-{number:05d}.{form}"


def part_number(path: Path) -> int:
    """Raises ValueError for a file that `part_path` did not name."""
    return int(path.stem.removeprefix("part-"))


def check_settings(folder: str | Path, expected: Mapping[str, Any], remedy: str, *, missing: str = MISSING) -> None:
    """Compare what the embeddings of a folder depend on with what they should.

    Args:
        expected: some or all of the settings.
        remedy, missing: for people, where they differ and where there are none.

    Raises:
        FileNotFoundError: the folder holds no embeddings.
        ValueError: they were made with other settings; all that differ are named.
    """
    saved = read_json(Path(folder) / SETTINGS, missing)
    differing = sorted(name for name, value in expected.items() if saved.get(name) != value)
    if differing:
        changes = ", ".join(f"{name} (there {saved.get(name)}, now {expected[name]})" for name in differing)
        raise ValueError(f"{folder} holds embeddings with other {changes}: {remedy}")


def located(folder: Path, missing: str) -> tuple[dict[str, Any], list[Path]]:
    """The settings of a folder and its parts, which are all there; raises as `read`."""
    settings = read_settings(folder, missing)
    paths = part_paths(folder, settings)
    if (folder / PLAN).exists():
        logger.warning("%s lacks embeddings of files that are new or other by now: %s", folder, missing)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no embeddings yet: {missing}")
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise FileNotFoundError(
            f"{folder} lacks {len(absent)} of {len(paths)} parts of its embeddings, e.g. {absent[0]}: {missing}"
        )
    return settings, paths


def read(folder: str | Path, *, missing: str = MISSING) -> tuple[torch.Tensor, dict[int, str], list[str | None]]:
    """All embeddings of a folder (rows, D), why the unreadable ones are, and names (None where there are none).

    One part in safetensors stays mapped from its file; several are copied into one.

    Args:
        missing: the remedy where the folder does not hold all of them, for people.

    Raises:
        FileNotFoundError: it holds none, or not all of them.
        ValueError: a file there is damaged.
    """
    settings, paths = located(Path(folder), missing)
    embeds, errors, names = [], {}, []
    for path in paths:
        notes = read_notes(path, missing)
        errors |= {len(names) + place: message for place, message in notes.errors.items()}
        names += notes.names
        embeds.append(read_embeds(path, missing))
    check_rows(folder, len(names), settings, missing)
    return embeds[0] if len(embeds) == 1 else torch.cat(embeds), errors, names


def check_rows(folder: str | Path, found: int, settings: Mapping[str, Any], missing: str) -> None:
    """Raises ValueError where the parts of a folder hold another number of rows than it was begun for."""
    if found != settings.get("rows", found) or not found:
        raise ValueError(f"{folder} holds {found} of {settings.get('rows', 0)} rows: delete it, then {missing}")
