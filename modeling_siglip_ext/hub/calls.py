"""Calls of the Hub: again after a failure that may pass, and one message that says what to do after one that stays."""

import json
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from transformers.utils import logging


logger = logging.get_logger(__name__)
T = TypeVar("T")

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


def call(work: Callable[[], T], repo_id: str, *, attempts: int = ATTEMPTS) -> T:
    """Call the Hub; again after a failure that may pass, waiting as long as it asks.

    Raises:
        RepositoryNotFoundError: as it is.
        PublishError: one message that says what to do.
    """
    wait = 1.0
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except RepositoryNotFoundError:
            raise
        except (HTTPError, RuntimeError, json.JSONDecodeError) as error:
            cause = _of_the_net(error)
            if cause is None and type(error) is RuntimeError:  # what the newer protocol raises
                raise PublishError(f"the upload failed ({error}): publish again, what was sent is kept") from error
            if cause is None:
                raise
            response = getattr(cause, "response", None)
            status = None if response is None else response.status_code
            if attempt == attempts or not (status is None or status in TRANSIENT):
                raise PublishError(_message(cause, status, repo_id)) from None
            asked = "" if response is None else response.headers.get("Retry-After", "")
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
