"""Publishing a model folder on the Hub: what goes there, what must not, and one commit that is there whole or not.

Files go up first, one after another, and the commit names them all at the end. An upload that was cut is resumed by
publishing again: what the Hub already holds is not sent twice, and until the commit nobody sees anything.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .calls import MESSAGES, TRANSIENT, PublishError, call
from .repository import Remote, look, refuse
from .upload import Upload, prepare


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
        call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
        remote = look(api, repo_id, revision)  # an empty repository can have a first commit already
    with _without_xet(not call(lambda: speaks_xet(api, repo_id, revision), repo_id)):
        commit = _push(api, upload, remote, message, revision)
    say(commit.commit_url)
    return commit


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
def _without_xet(disabled: bool) -> Generator[None]:
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
            call(send, upload.repo_id, attempts=1)  # huggingface_hub tries again by itself
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

    return call(commit, upload.repo_id)


def _as_ours(api: HfApi, upload: Upload, now: Remote, message: str, revision: str | None) -> CommitInfo:
    """The latest commit, if the repository holds just what was to be committed.

    Raises:
        PublishError: it holds something else.
    """
    if now.head is None:  # it was there before this commit, and was deleted or hidden since
        raise PublishError(MESSAGES[404].format(repo=upload.repo_id))
    tree = api.list_repo_tree(upload.repo_id, recursive=True, revision=revision)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    if now.stale(upload) or not all(_same(there.get(one.path_in_repo), one) for one in upload.operations()):
        raise PublishError(MESSAGES[412].format(repo=upload.repo_id))
    address = f"{api.endpoint}/{upload.repo_id}/commit/{now.head}"
    return CommitInfo(
        commit_url=address, commit_message=message, commit_description="", oid=now.head, _endpoint=api.endpoint
    )


def _same(file: RepoFile | None, operation: CommitOperationAdd) -> bool:
    """Whether a file of a repository is there and has the content of an operation, by their hashes."""
    if file is None:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as opened:
        content = opened.read()
    return file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
