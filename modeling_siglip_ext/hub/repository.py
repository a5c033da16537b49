"""What a repository of the Hub holds, and whether it may be pushed to."""

from dataclasses import dataclass
from fnmatch import fnmatch

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .calls import MESSAGES, PublishError, call
from .card import CARD, written_here
from .results import EVAL_RESULTS, MEASURED, PUBLISHED
from .upload import RefusedError, Upload


# Files at the top of a repository that loaders look for: one that stays behind would be loaded in place of ours.
LOADED = ("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.json", "*.py", "*.model", "*.jinja")
LOADED_TEXTS = ("vocab.txt", "merges.txt")


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


def look(api: HfApi, repo_id: str, revision: str | None = None) -> Remote:
    """What the Hub has under a name, on a branch.

    Raises:
        PublishError: it cannot be read.
    """
    try:
        info = call(lambda: api.model_info(repo_id, revision=revision), repo_id)
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

        ours = written_here(call(read, repo_id))
    return Remote(True, info.sha, info.private, files, ours)


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
        repo_id = f"{call(api.whoami, repo_id)['name']}/{repo_id}"
    remote = look(api, repo_id, revision)
    refuse(remote, repo_id, private=private, overwrite=overwrite)
    if not remote.exists:
        call(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
    return repo_id
