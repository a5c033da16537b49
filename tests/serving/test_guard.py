"""What is refused before the application sees it."""

import asyncio
import json
from dataclasses import replace

import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving import guard
from modeling_siglip_ext.serving.guard import Guard
from modeling_siglip_ext.serving.held import Held
from modeling_siglip_ext.serving.metrics import Metrics
from modeling_siglip_ext.serving.settings import Limits


LIMITS = Limits(body=10, held=15, body_seconds=0.2)


class Call:
    """A request whose messages are given one by one."""

    def __init__(self, app, parts=(b"",), headers=(), path="/v1/embeddings"):
        self.app, self.sent, self.parts = app, [], asyncio.Queue()
        for place, part in enumerate(parts):
            more = place < len(parts) - 1
            self.parts.put_nowait({"type": "http.request", "body": part, "more_body": more})
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}

    def leave(self):
        self.parts.put_nowait({"type": "http.disconnect"})

    async def send(self, message):
        self.sent.append(message)

    async def run(self):
        await asyncio.wait_for(self.app(self.scope, self.parts.get, self.send), 20)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def code(self):
        return json.loads(self.sent[1]["body"])["error"]["code"]


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def guarded(app=echo, keys=(), limits=LIMITS):
    return Guard(app, ["/v1/embeddings", "/"], keys, limits, Held(limits.held), Metrics())


def test_a_body_comes_through_in_one_piece():
    call = asyncio.run(Call(guarded(), [b"abc", b"", b"def"]).run())
    assert (call.status, call.sent[1]["body"]) == (200, b"abcdef")


def test_every_key_is_compared_in_constant_time_and_as_bytes(monkeypatch):
    compared = []
    honest = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or honest(a, b))
    app = guarded(keys=(b"one", b"two", b"three"))

    def status(value, path="/v1/embeddings"):
        headers = [] if value is None else [(b"authorization", value)]
        return asyncio.run(Call(app, headers=headers, path=path).run()).status

    assert [status(b"Bearer " + key) for key in (b"one", b"two", b"three")] == [200] * 3
    assert len(compared) == 9
    wrong = [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer on",
        b"Basic one",
        b"one",
        b"Bearer \xff\xfe",
        b"Bearer one two",
    ]
    assert [status(value) for value in wrong] == [401] * len(wrong)
    assert status(None, path="/") == 200
    assert status(None, path="//") == 401


@pytest.mark.parametrize(
    "call",
    [
        lambda: Call(guarded(), [b"12345678901"]),
        lambda: Call(guarded(), [b"123456", b"789012"]),
        lambda: Call(guarded(), [b"x"], headers=[(b"content-length", b"11")]),
        lambda: Call(guarded(), [b"x"], headers=[(b"content-length", b"9" * 5000)]),
    ],
)
def test_large_bodies_are_refused(call):
    async def main():
        found = await call().run()
        assert (found.status, found.code) == (413, "request_too_large")
        assert found.app.held.size == 0

    asyncio.run(main())


def test_a_body_that_does_not_arrive_in_time():
    async def main():
        call = Call(guarded(), [b"abc", b"never"])
        call.parts._queue.pop()
        assert (await call.run()).status == 408
        assert call.app.held.size == 0

    asyncio.run(main())


def test_all_requests_together_hold_so_many_bytes():
    async def main():
        go = asyncio.Event()

        async def slow(scope, receive, send):
            await go.wait()
            await echo(scope, receive, send)

        app = guarded(slow)
        first = asyncio.create_task(Call(app, [b"x" * 9]).run())
        while app.held.size == 0:
            await asyncio.sleep(0)
        refused = await Call(app, [b"y" * 9]).run()
        assert (refused.status, refused.code) == (429, "overloaded")
        assert (b"retry-after", b"1") in refused.sent[0]["headers"]
        go.set()
        assert (await first).status == 200
        assert (await Call(app, [b"y" * 9]).run()).status == 200
        assert app.held.size == 0

    asyncio.run(main())


def test_the_work_of_a_client_that_goes_away_is_cancelled():
    async def main():
        cancelled, received = [], asyncio.Event()

        async def waits(scope, receive, send):
            await receive()
            received.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        call = Call(guarded(waits), [b"abc"])
        running = asyncio.create_task(call.run())
        await received.wait()
        call.leave()
        await running
        assert cancelled == [True]
        assert call.sent == []
        early = Call(guarded(), [b"abc", b"def"])
        early.parts._queue.pop()
        early.leave()
        assert (await early.run()).sent == []

    asyncio.run(main())


def test_an_error_of_the_application_is_seen_by_the_server():
    async def fails(scope, receive, send):
        raise ZeroDivisionError

    app = guarded(fails, limits=replace(LIMITS, body=100))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Call(app).run())
    assert app.held.size == 0
