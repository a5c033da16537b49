"""What every request passes before the server looks at it: its key, its size, its time; and what is logged of it.

One line a request, with nothing in it that a client wrote: no query, no header, no body.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .held import Held, Share
from .metrics import Metrics
from .settings import Limits


logger = logging.getLogger(__name__)
# without a key: the page asks for one, and probes have none
OPEN = ("/", "/healthz", "/readyz")


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refused(Exception):
    """A request that is answered with an error before it is looked at."""

    def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class Guard:
    """ASGI middleware.

    Args:
        paths: that the server knows; others share one name in logs and metrics.
        keys: one of which a request must have, if there are any.
        held: what bodies take their room from.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Sequence[str],
        keys: Sequence[bytes],
        limits: Limits,
        held: Held,
        metrics: Metrics,
    ):
        self.app, self.paths, self.limits, self.held, self.metrics = app, frozenset(paths), limits, held, metrics
        self.digests = [digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the client went away before it was answered
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self.check_key(scope, path)
            with self.held.share() as share:
                body = await self.read(scope, receive, share)
                if body is not None:
                    await self.answer(scope, body, receive, noting)
        except Refused as error:
            await refuse(error, noting)
        finally:
            seconds = time.monotonic() - started
            self.metrics.requests.labels(path, status).inc()
            self.metrics.request_seconds.labels(path).observe(seconds)
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            logger.info("%s %s %d %.3f s", method, path, status, seconds)

    def check_key(self, scope: Scope, path: str) -> None:
        """Constant time: every key is compared, whichever fits, by hashes of one length."""
        if not self.digests or path in OPEN:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        given_digest = digest(key.strip())
        fits = [hmac.compare_digest(given_digest, known) for known in self.digests]
        if scheme.lower() != b"bearer" or not any(fits):
            raise Refused(401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key")

    async def read(self, scope: Scope, receive: Receive, share: Share) -> bytes | None:
        """The body; None if the client goes away."""
        parts, size = [], 0
        too_large = Refused(413, f"a request may have {self.limits.body} bytes", "request_too_large")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > self.limits.body:
                raise too_large
        deadline = time.monotonic() + self.limits.body_seconds
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                headers = {"connection": "close"}
                raise Refused(408, "the request did not arrive in time", "request_timeout", headers) from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body:
                raise too_large
            if not share.take(len(part)):
                raise Refused(429, "the server holds as much as it can", "overloaded", {"retry-after": "1"})
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Hand the request on; when its client goes away, its items leave the queue."""
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def departure() -> Message:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message

        gone = asyncio.ensure_future(departure())

        async def replay() -> Message:
            message = next(messages, None)
            return message if message is not None else await asyncio.shield(gone)

        work = asyncio.ensure_future(self.app(scope, replay, send))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        gone.cancel()
        [error] = await asyncio.gather(work, return_exceptions=True)
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def refuse(error: Refused, send: Send) -> None:
    kind = "authentication_error" if error.status == 401 else "invalid_request_error"
    body = json.dumps(error_body(str(error), kind, error.code)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
