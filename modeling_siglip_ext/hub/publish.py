"""Publishing a model folder on the Hub: what goes there, what must not, and one commit that is there whole or not.

Files go up first, one after another, and the commit names them all at the end. An upload that was cut is resumed by
publishing again: what the Hub already holds is not sent twice, and until the commit nobody sees anything.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from .card import CARD, EVAL_RESULTS, MEASURED, PUBLISHED, card_at, check_card, written_here
from .facts import HELD_OUT, facts_of


logger = logging.get_logger(__name__)
T = TypeVar("T")

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
# Files at the top of a repository that loaders look for: one that stays behind would be loaded in place of ours.
LOADED = ("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.json", "*.py", "*.model", "*.jinja")
LOADED_TEXTS = ("vocab.txt", "merges.txt")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
TEXT = (".json", ".md", ".txt", ".py", ".yaml", ".yml", ".jinja")

ATTEMPTS = 5
LONGEST_WAIT = 8.0
TRANSIENT = (408, 429, 500, 502, 503, 504)
MESSAGES = {
    401: "the Hub does not accept the token: log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    402: "the Hub asks for payment for this repository",
    403: "the token may not write to {repo}: use one with write permission there",
    404: "{repo} does not exist, or the token may not see it",
    409: "{repo} is being changed by somebody else: publish again",
    412: "{repo} was changed by somebody else meanwhile: look at it, and publish again",
    413: "the Hub finds the upload too large",
    429: "the Hub still asks to wait after several attempts: publish again later, what was sent is kept",
}


class PublishError(RuntimeError):
    """Publishing failed; the message says why and what to do."""


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


@dataclass(frozen=True)
class Remote:
    """What the Hub has under the name.

    Args:
        exists: whether there is a repository.
        head: its latest commit; None for an empty one.
        private: whether it is private.
        files: its files.
        ours: whether this package wrote its card.
    """

    exists: bool = False
    head: str | None = None
    private: bool | None = None
    files: tuple[str, ...] = ()
    ours: bool = False

    def stale(self, upload: Upload) -> list[str]:
        """Files that this push would leave behind, and that loaders would read."""
        gone = [file for file in self.files if file not in upload.files]
        top = [file for file in gone if "/" not in file]
        own = [f"{EVAL_RESULTS}/{name}" for name in (MEASURED, PUBLISHED)]
        loaded = [f for f in top if f in LOADED_TEXTS or any(fnmatch(f, pattern) for pattern in LOADED)]
        return loaded + [file for file in gone if file in own]


# ---- the folder ----


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
            reason = next((why for pattern, why in OF_A_RUN.items() if fnmatch(file.name, pattern)), None)
            if reason is None and file.name.startswith((".", "_")):
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


# ---- the Hub ----


def look(api: HfApi, repo_id: str, revision: str | None = None) -> Remote:
    """What the Hub has under a name, on a branch.

    Raises:
        PublishError: it cannot be read.
    """
    try:
        info = _call(lambda: api.model_info(repo_id, revision=revision), repo_id)
    except RepositoryNotFoundError:
        return Remote()
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    ours = False
    if CARD in files:
        address = f"{api.endpoint}/{repo_id}/resolve/{info.sha}/{CARD}"

        def read() -> str:
            response = get_session().get(address, headers=build_hf_headers(token=api.token), follow_redirects=True)
            hf_raise_for_status(response)
            return response.text

        ours = written_here(_call(read, repo_id))
    return Remote(True, info.sha, info.private, files, ours)


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    message: str = "Upload of siglip-ext",
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    say: Callable[[str], Any] = print,
) -> CommitInfo | None:
    """Publish a model folder with one commit.

    Args:
        folder: a model folder with a card.
        repo_id: "user/name"; made if it is not there.
        private: whether a new repository is private; None leaves that to the user's settings on the Hub.
        overwrite: also push over files whose card this package did not write.
        dry_run: list what would be pushed, and send nothing.
        message: of the commit.
        revision: branch; the main one by default.
        token: access token; by default that of `hf auth login` or HF_TOKEN.
        endpoint: address of the Hub; by default HF_ENDPOINT.
        say: receives the list of files, a line at a time.

    Returns:
        The commit; None for a dry run.

    Raises:
        FileNotFoundError, ValueError: the folder is not fit to be published; see `prepare`.
        RefusedError: the repository has a card of others, or is public and should be private.
        PublishError: the Hub refuses, or cannot be reached; publishing again resumes.

    Example:
        >>> publish("my-siglip", "user/my-siglip", private=True)  # doctest: +SKIP
    """
    token = token or get_token()
    api = HfApi(endpoint=endpoint, token=token)
    upload = prepare(folder, repo_id, token=token)
    remote = look(api, repo_id, revision)
    for line in listing(upload, remote):
        say(line)
    refuse(remote, repo_id, private=private, overwrite=overwrite)
    if dry_run:
        return None
    if token is None:
        raise PublishError(MESSAGES[401])
    if not remote.exists:
        _call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
        remote = look(api, repo_id, revision)  # an empty repository can have a first commit already
    with _without_xet(not _call(lambda: speaks_xet(api, repo_id, revision), repo_id)):
        commit = _push(api, upload, remote, message, revision)
    say(commit.commit_url)
    return commit


def refuse(remote: Remote, repo_id: str, *, private: bool | None = None, overwrite: bool = False) -> None:
    """
    Raises:
        RefusedError: a repository that must not be pushed to as it is.
    """
    content = [file for file in remote.files if file != ".gitattributes"]
    if content and not remote.ours and not overwrite:
        raise RefusedError(
            f"{repo_id} has {'a card' if CARD in remote.files else 'files'} that siglip-ext did not write: choose "
            "another name, or push over it with --overwrite (in training: hub_overwrite); its history keeps what was"
        )
    if private and remote.exists and not remote.private:
        raise RefusedError(f"{repo_id} exists and is public: make it private on the Hub first, or leave --private out")


def ensure_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Make a repository, or make sure that it may be pushed to; returns its full name.

    Args:
        repo_id: "user/name", or "name" in the user's own namespace.
        private, overwrite, revision, token, endpoint: as for `publish`.

    Raises:
        RefusedError, PublishError: as for `publish`.
    """
    api = HfApi(endpoint=endpoint, token=token or get_token())
    if api.token is None:
        raise PublishError(MESSAGES[401])
    if "/" not in repo_id:
        repo_id = f"{_call(api.whoami, repo_id)['name']}/{repo_id}"
    remote = look(api, repo_id, revision)
    refuse(remote, repo_id, private=private, overwrite=overwrite)
    if not remote.exists:
        _call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
    return repo_id


def listing(upload: Upload, remote: Remote) -> Iterator[str]:
    """What is pushed, removed and left here, a line each."""
    total = sum(map(upload.size, upload.files))
    yield f"to {upload.repo_id}{'' if remote.exists else ' (new)'}: {len(upload.files)} files, {_bytes(total)}"
    for file in upload.files:
        yield f"  {_bytes(upload.size(file)):>9}  {file}"
    for file in remote.stale(upload):
        yield f"    removed  {file}"
    for file, reason in upload.left_out.items():
        yield f"  left here  {file}: {reason}"


def speaks_xet(api: HfApi, repo_id: str, revision: str | None = None) -> bool:
    """Whether the Hub takes uploads by its newer protocol; other servers of its interface often do not.

    huggingface_hub does not ask, and fails where the protocol is installed here but not there.
    """
    address = f"{api.endpoint}/api/models/{repo_id}/xet-write-token/{revision or constants.DEFAULT_REVISION}"
    response = get_session().get(address, headers=build_hf_headers(token=api.token))
    if response.status_code in TRANSIENT:
        hf_raise_for_status(response)
    return response.is_success


@contextmanager
def _without_xet(disabled: bool) -> Iterator[None]:
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = before or disabled
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _push(api: HfApi, upload: Upload, remote: Remote, message: str, revision: str | None) -> CommitInfo:
    """Send the weights, then the commit with all the rest. Run again it sends only what the Hub does not have."""
    operations = upload.operations()
    for operation in operations:
        if operation.path_in_repo.endswith(".safetensors"):  # one at a time: what is up when the line breaks stays up
            send = partial(api.preupload_lfs_files, upload.repo_id, [operation], revision=revision)
            _call(send, upload.repo_id, attempts=1)  # huggingface_hub tries again by itself
    deletions = [CommitOperationDelete(file) for file in remote.stale(upload)]
    first = True

    def commit() -> CommitInfo:
        nonlocal first
        if not first:
            now = look(api, upload.repo_id, revision)
            if now.head != remote.head:  # the answer to the last attempt was lost, or somebody else was faster
                return _as_ours(api, upload, now, message, revision)
        first = False
        return api.create_commit(
            upload.repo_id,
            operations=[*operations, *deletions],
            commit_message=message,
            revision=revision,
            parent_commit=remote.head,
        )

    return _call(commit, upload.repo_id)


def _as_ours(api: HfApi, upload: Upload, now: Remote, message: str, revision: str | None) -> CommitInfo:
    """The latest commit, if the repository holds just what was to be committed.

    Raises:
        PublishError: it holds something else.
    """
    tree = api.list_repo_tree(upload.repo_id, recursive=True, revision=revision)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for operation in upload.operations():
        file = there.get(operation.path_in_repo)
        if file is None or not _same(file, operation):
            raise PublishError(MESSAGES[412].format(repo=upload.repo_id))
    if now.stale(upload):
        raise PublishError(MESSAGES[412].format(repo=upload.repo_id))
    address = f"{api.endpoint}/{upload.repo_id}/commit/{now.head}"
    return CommitInfo(
        commit_url=address, commit_message=message, commit_description="", oid=now.head, _endpoint=api.endpoint
    )


def _same(file: RepoFile, operation: CommitOperationAdd) -> bool:
    """Whether a file of a repository has the content of an operation, by their hashes."""
    if file.lfs is not None:
        return file.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as opened:
        content = opened.read()
    return file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


# ---- errors ----


def _call(call: Callable[[], T], repo_id: str, *, attempts: int = ATTEMPTS) -> T:
    """Call the Hub; again after a failure that may pass, waiting as long as it asks.

    Raises:
        RepositoryNotFoundError: as it is.
        PublishError: one message that says what to do.
    """
    wait = 1.0
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except RepositoryNotFoundError:
            raise
        except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
            cause = _of_the_net(error)
            if cause is None and type(error) is RuntimeError:  # what the newer protocol raises
                raise PublishError(f"the upload failed ({error}): publish again, what was sent is kept") from error
            if cause is None:
                raise
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if attempt == attempts or not (status is None or status in TRANSIENT):
                raise PublishError(_message(cause, status, repo_id)) from None
            asked = cause.response.headers.get("Retry-After", "") if status is not None else ""
            pause = float(asked) if asked.isdigit() else wait
            wait = min(2 * wait, LONGEST_WAIT)
            what = f"answers {status}" if status is not None else "cannot be reached"
            logger.warning("the Hub %s; attempt %d of %d in %.0f s", what, attempt + 1, attempts, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _of_the_net(error: BaseException | None) -> Exception | None:
    """The error of the line or of the Hub behind an error; None where there is none.

    huggingface_hub wraps what happens in its upload threads in a RuntimeError.
    """
    while error is not None:
        if isinstance(error, (HTTPError, json.JSONDecodeError)):
            return error
        error = error.__cause__
    return None


def _message(error: Exception, status: int | None, repo_id: str) -> str:
    if status is None:
        return f"the Hub cannot be reached ({type(error).__name__}): publish again later, what was sent is kept"
    if status >= 500:
        return f"the Hub fails with {status} after several attempts: publish again later, what was sent is kept"
    text = MESSAGES.get(status, "the Hub refuses").format(repo=repo_id)
    said = getattr(error, "server_message", None)
    return f"{text} ({status}{f': {said}' if said else ''})"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
