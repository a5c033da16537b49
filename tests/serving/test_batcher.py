"""Which items share a batch, and what becomes of the others when something fails; with workers that only pretend."""

import asyncio

import numpy as np
import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.batcher import Batcher, Item, QueueFull
from modeling_siglip_ext.serving.encoder import Encoded
from modeling_siglip_ext.serving.metrics import Metrics
from modeling_siglip_ext.serving.workers import WorkerLost


class Pretended:
    """Waits for permission before each batch; the vector of an item is its number."""

    ready = True

    def __init__(self):
        self.batches = []
        self.go = asyncio.Semaphore(0)

    async def encode(self, kind, items):
        self.batches.append((kind, list(items)))
        await self.go.acquire()
        if "lost" in items:
            raise WorkerLost("the process that computed this died")
        if "bug" in items:
            raise RuntimeError("out of memory")
        errors = {place: "broken" for place, item in enumerate(items) if item == "broken"}
        return Encoded(np.arange(len(items), dtype=np.float32)[:, None], errors, [1] * len(items))

    async def death(self):
        await asyncio.Event().wait()


def run(scenario, sizes=None, limit=100, workers=1):
    """A scenario with a started batcher and its workers."""

    async def main():
        pretended = [Pretended() for _ in range(workers)]
        batcher = Batcher(pretended, sizes or {"image": 2, "text": 3}, limit, 0.001, Metrics())
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher, *pretended), 20)
        finally:
            await batcher.stop()

    asyncio.run(main())


def items(kind, *contents):
    return [Item(kind, content) for content in contents]


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def busy(worker, batches=1):
    return until(lambda: len(worker.batches) == batches)


def test_batches_are_of_one_kind_the_oldest_first_and_full_where_they_can_be():
    async def scenario(batcher, worker):
        futures = batcher.submit(items("text", "first"))
        await busy(worker)  # with this one
        futures += batcher.submit(items("image", 1, 2, 3))
        futures += batcher.submit(items("text", "a", "b", "c", "d"))
        futures += batcher.submit(items("image", 4))
        for _ in range(5):
            worker.go.release()
        await asyncio.gather(*futures)
        assert worker.batches == [
            ("text", ["first"]),
            ("image", [1, 2]),
            ("image", [3, 4]),
            ("text", ["a", "b", "c"]),
            ("text", ["d"]),
        ]

    run(scenario)


def test_requests_that_come_together_share_a_batch():
    async def scenario(batcher, worker):
        futures = [future for number in range(2) for future in batcher.submit(items("image", number))]
        worker.go.release()
        await asyncio.gather(*futures)
        assert worker.batches == [("image", [0, 1])]

    run(scenario)


@pytest.mark.parametrize(("size", "comes", "slept"), [(8, 1, 1), (8, 4, 4), (3, 4, 2), (100, 100, 20)])
def test_a_worker_waits_while_more_comes(size, comes, slept, monkeypatch):
    """Where nothing more comes it takes what there is, and no flow of single items holds it for long."""
    batcher = Batcher([], {"text": size}, 1000, 0.01, Metrics())
    queue, now, waits = batcher.queues["text"], [0.0], []

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds
        if len(queue) < comes:
            batcher.submit(items("text", "more"))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr("modeling_siglip_ext.serving.batcher.time.monotonic", lambda: now[0])

    async def main():
        batcher.submit(items("text", "first"))
        await batcher.fill(queue, size)

    asyncio.run(main())
    assert waits == [0.01] * slept


def test_a_request_fits_whole_or_not_at_all():
    async def scenario(batcher, worker):
        first = batcher.submit(items("text", "a"))
        await busy(worker)
        waiting = batcher.submit(items("text", "b", "c"))
        with pytest.raises(QueueFull) as full:
            batcher.submit(items("text", "d", "e"))
        assert full.value.retry_after >= 1
        assert batcher.waiting == 2
        last = batcher.submit(items("text", "d"))
        for _ in range(2):
            worker.go.release()
        await asyncio.gather(*first, *waiting, *last)
        assert worker.batches[1] == ("text", ["b", "c", "d"])

    run(scenario, limit=3)


@pytest.mark.parametrize(("what", "error"), [("lost", WorkerLost), ("bug", RuntimeError)])
def test_a_failing_batch_is_its_own_and_the_worker_goes_on(what, error):
    async def scenario(batcher, worker):
        failing = asyncio.create_task(batcher.encode(items("text", what, "beside")))
        await busy(worker)
        others = asyncio.create_task(batcher.encode(items("text", "a")))
        for _ in range(2):
            worker.go.release()
        with pytest.raises(error):
            await failing
        assert (await others)[0].embed is not None

    run(scenario)


def test_a_broken_item_is_an_outcome_among_others():
    async def scenario(batcher, worker):
        worker.go.release()
        first, second = await batcher.encode(items("image", "broken", 1))
        assert (first.embed, first.error) == (None, "broken")
        assert second.embed.tolist() == [1.0]
        assert second.error is None

    run(scenario)


def test_items_whose_client_has_gone_are_not_computed():
    async def scenario(batcher, worker):
        batcher.submit(items("text", "a"))
        await busy(worker)
        gone = asyncio.create_task(batcher.encode(items("text", "gone")))
        await until(lambda: batcher.waiting == 1)
        stays = batcher.submit(items("text", "stays"))
        gone.cancel()
        await until(gone.done)
        for _ in range(2):
            worker.go.release()
        await asyncio.gather(*stays)
        assert worker.batches[1] == ("text", ["stays"])

    run(scenario)


def test_idle_workers_take_batches_at_the_same_time():
    async def scenario(batcher, one, two):
        futures = batcher.submit(items("image", 1, 2, 3))
        await until(lambda: one.batches and two.batches)
        assert sorted(one.batches + two.batches) == [("image", [1, 2]), ("image", [3])]
        one.go.release()
        two.go.release()
        await asyncio.gather(*futures)

    run(scenario, workers=2)


def test_time_until_there_is_room_is_estimated_from_what_batches_took():
    async def scenario(batcher, worker):
        batcher.pace = {"image": 0.5, "text": 0.25}
        batcher.submit(items("text", "busy"))
        await busy(worker)
        batcher.submit(items("image", *range(10)) + items("text", *"abcdefgh"))
        assert batcher.retry_after() == 10 * 0.5 + 8 * 0.25
        worker.go.release()

    run(scenario)
