"""What goes to the Hub of a model folder, what must not, and whether others can load it."""

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from siglip_ext_runtime import is_exported

from .card import CARD, card_at, check_card
from .facts import HELD_OUT, facts_of
from .results import EVAL_RESULTS


# Only these are published. Pickles (.bin, .pt, ...) are not: reading one runs the code in it.
KINDS = (".safetensors", ".json", ".md", ".txt", ".model", ".jinja", ".py", ".png", ".jpg", ".yaml", ".yml")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
NAMES = ("LICENSE", "NOTICE")
FOLDERS = (EVAL_RESULTS, HELD_OUT)
# Files of a kind that is published, but that belong to a run and not to its model.
OF_A_RUN = {
    "trainer_state.json": "state of a training run, with paths of this machine",
    "progress*.json": "state of a training run",
    "all_results.json": "state of a training run",
    "*_results.json": "state of a training run",
    "optimizer*": "optimiser state",
    "scheduler*": "optimiser state",
    "rng_state*": "state of a training run",
}
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
TEXT = (".json", ".md", ".txt", ".py", ".yaml", ".yml", ".jinja")


class RefusedError(ValueError):
    """A folder or a repository that is not published as it is; the message says why and what to do."""


@dataclass(frozen=True)
class Upload:
    """What publishing a folder sends.

    Args:
        folder: the model folder.
        repo_id: where it goes.
        card: the card as it is published.
        files: paths in the folder, in their order; the card among them.
        left_out: what stays here, and why.
    """

    folder: Path
    repo_id: str
    card: str
    files: list[str]
    left_out: dict[str, str] = field(default_factory=dict)

    def size(self, file: str) -> int:
        return len(self.card.encode()) if file == CARD else (self.folder / file).stat().st_size

    def operations(self) -> list[CommitOperationAdd]:
        return [
            CommitOperationAdd(file, self.card.encode() if file == CARD else self.folder / file) for file in self.files
        ]


def prepare(folder: str | Path, repo_id: str, *, token: str | None = None) -> Upload:
    """Choose what is published of a folder, and make sure that it loads; nothing is sent.

    Args:
        folder: a model folder with a card.
        repo_id: "user/name".
        token: the token that will be used; no file may hold it.

    Raises:
        FileNotFoundError: the folder, its configuration, weights or card are missing.
        RefusedError: a bad name, a file with a token, a folder that does not load.
        ValueError: a card with metadata that the Hub refuses.
    """
    folder = Path(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RefusedError(str(error)) from error
    if repo_id.count("/") != 1:
        raise RefusedError(f"{repo_id!r} is no name of a repository: give USER/NAME")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist or is not a folder")
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CARD}: training and `siglip-ext-convert from-jax` write one, or write your own"
        )
    check_loads(folder)
    card = card_at(folder, repo_id)
    check_card(card)
    files, left_out = select(folder)
    for file in files:
        text = card if file == CARD else None
        if text is None and Path(file).suffix in TEXT:
            text = (folder / file).read_text(encoding="utf-8", errors="replace")
        if text is not None and (TOKEN.search(text) or (token and token in text)):
            raise RefusedError(f"{folder / file} holds an access token: take it out, and revoke the token")
    return Upload(folder, repo_id, card, files, left_out)


def select(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The files of a folder that are published, and the others with the reason why not."""
    files, left_out = [], {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in FOLDERS:
            left_out[f"{path.name}/"] = "no part of a model"
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            name = file.relative_to(folder).as_posix()
            inside = file.relative_to(path) if path.is_dir() else Path(file.name)
            reason = next((why for pattern, why in OF_A_RUN.items() if fnmatch(file.name, pattern)), None)
            if reason is None and any(part.startswith((".", "_")) for part in inside.parts):
                reason = "hidden"
            if reason is None and file.suffix not in KINDS and name not in NAMES:
                reason = "a pickle" if file.suffix in PICKLES else "no part of a model"
            if reason is None:
                files.append(name)
            else:
                left_out[name] = reason
    return files, left_out


def check_loads(folder: Path) -> None:
    """Make sure that others can load the folder: configuration, processor, and the headers of all weights.

    Raises:
        FileNotFoundError: something is missing.
        RefusedError: something is damaged.
    """
    if is_exported(folder):
        raise RefusedError(f"{folder} is an export, which has no weights to publish: upload it with `hf upload`")
    facts = facts_of(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"{index} is damaged: {error}") from error
    else:
        wanted = ["model.safetensors"]
    for name in wanted:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise RefusedError(f"{folder / name} is not a sound safetensors file: {error}") from error
    kind = AutoProcessor if facts.pair else AutoImageProcessor
    if facts.pair and not facts.tokenizer:
        raise RefusedError(
            f"{folder} has no tokenizer, so nobody could give the model a text: convert it with --tokenizer"
        )
    try:
        kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"the processor of {folder} does not load: {error}") from error
