"""Items of all requests wait in one queue a kind; whichever worker is idle takes the next batch."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import Metrics
from .workers import Worker


logger = logging.getLogger(__name__)
RESTART_SECONDS = 5.0
LONGEST_RETRY = 600
LONGEST_LINGER = 20  # times `linger`


class QueueFull(Exception):
    """There is no room for a request; `retry_after` says in how many seconds there should be."""

    def __init__(self, retry_after: int):
        super().__init__("the server has as much to do as it takes: try again later")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Item:
    """An image, as the bytes of its file, or a text."""

    kind: str
    content: Any


@dataclass(frozen=True)
class Outcome:
    """What became of an item: a unit vector (D,) float32, or an error.

    Args:
        length: tokens or patches; see `Encoded`.
        cut: whether the text was longer than the tower.
    """

    embed: np.ndarray | None
    length: int = 0
    cut: bool = False
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Waiting:
    item: Item
    future: "asyncio.Future[Outcome]"
    since: float


class Batcher:
    """Forms batches of one kind, the oldest item first, and hands them to workers.

    Args:
        workers: started ones.
        sizes: items in a batch, by kind.
        limit: items that may wait.
        linger: seconds that an idle worker waits for more of a batch that is not full, as long as more comes.
    """

    def __init__(
        self, workers: Sequence[Worker], sizes: Mapping[str, int], limit: int, linger: float, metrics: Metrics
    ):
        self.workers, self.sizes, self.limit, self.linger, self.metrics = workers, sizes, limit, linger, metrics
        self.queues: dict[str, deque[Waiting]] = {kind: deque() for kind in sizes}
        self.pace = dict.fromkeys(sizes, 0.1)  # seconds of a worker for an item, smoothed
        self.arrived = asyncio.Event()
        self.taking = asyncio.Lock()
        self.tasks: list[asyncio.Task[None]] = []
        for kind, queue in self.queues.items():
            metrics.queue.labels(kind).set_function(lambda queue=queue: len(queue))

    @property
    def waiting(self) -> int:
        """Items in all queues."""
        return sum(map(len, self.queues.values()))

    def submit(self, items: Sequence[Item]) -> "list[asyncio.Future[Outcome]]":
        """All of them or none.

        Raises:
            QueueFull: not all of them fit.
        """
        if items and self.waiting + len(items) > self.limit:
            raise QueueFull(self.retry_after())
        loop, now = asyncio.get_running_loop(), time.monotonic()
        added = [Waiting(item, loop.create_future(), now) for item in items]
        for one in added:
            self.queues[one.item.kind].append(one)
        self.arrived.set()
        return [one.future for one in added]

    async def encode(self, items: Sequence[Item]) -> list[Outcome]:
        """
        Raises:
            QueueFull: they do not fit.
            WorkerLost: the process that computed one of them died.
        """
        return await asyncio.gather(*self.submit(items))

    def retry_after(self) -> int:
        """Seconds until what waits now will be done."""
        seconds = sum(len(queue) * self.pace[kind] for kind, queue in self.queues.items()) / len(self.workers)
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))

    async def take(self) -> tuple[str, list[Waiting]]:
        """The next batch, without the items whose clients have gone; of several idle workers one waits for it."""
        async with self.taking:
            while not self.waiting:
                self.arrived.clear()
                await self.arrived.wait()
            kind = min((kind for kind, queue in self.queues.items() if queue), key=lambda k: self.queues[k][0].since)
            queue = self.queues[kind]
            await self.fill(queue, self.sizes[kind])
            batch = [queue.popleft() for _ in range(min(len(queue), self.sizes[kind]))]
        return kind, [one for one in batch if not one.future.done()]

    async def fill(self, queue: deque[Waiting], size: int) -> None:
        """Wait while the queue grows: many clients that had their answers together ask again one after the other."""
        before, latest = 0, time.monotonic() + LONGEST_LINGER * self.linger
        while before < len(queue) < size and time.monotonic() < latest:
            before = len(queue)
            await asyncio.sleep(self.linger)

    async def serve(self, worker: Worker) -> None:
        while True:
            kind, batch = await self.take()
            if batch:
                await self.compute(worker, kind, batch)

    async def compute(self, worker: Worker, kind: str, batch: Sequence[Waiting]) -> None:
        started = time.monotonic()
        for one in batch:
            self.metrics.wait_seconds.labels(kind).observe(started - one.since)
        contents = [one.item.content for one in batch]
        # whatever goes wrong is the fate of these items, and the worker goes on
        [found] = await asyncio.gather(worker.encode(kind, contents), return_exceptions=True)
        if isinstance(found, BaseException):
            logger.error("a batch of %d %ss failed: %s", len(batch), kind, type(found).__name__, exc_info=found)
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(found)
            return
        seconds = time.monotonic() - started
        self.pace[kind] = 0.8 * self.pace[kind] + 0.2 * seconds / len(batch)
        self.metrics.batch_seconds.labels(kind).observe(seconds)
        self.metrics.batch_items.labels(kind).observe(len(batch))
        self.metrics.failed_items.labels(kind).inc(len(found.errors))
        for place, one in enumerate(batch):
            error = found.errors.get(place)
            embed = None if error else found.embeds[place]
            outcome = Outcome(embed, found.lengths[place], place in found.cut, error)
            if not one.future.done():
                one.future.set_result(outcome)

    async def supervise(self, worker: Worker) -> None:
        """A new process in place of a dead one, tried until it stands; the other workers go on meanwhile."""
        while True:
            await worker.death()
            logger.error("a worker died")
            self.metrics.worker_restarts.inc()
            while not worker.ready:
                [found] = await asyncio.gather(worker.start(), return_exceptions=True)
                if isinstance(found, BaseException):
                    logger.error("a worker does not start: %s; again in %d seconds", found, RESTART_SECONDS)
                    await asyncio.sleep(RESTART_SECONDS)
            logger.warning("it was replaced")

    def start(self) -> None:
        runs = [run(worker) for worker in self.workers for run in (self.serve, self.supervise)]
        self.tasks = [asyncio.create_task(run) for run in runs]

    async def stop(self) -> None:
        """What still waits is given up: the server has waited for its requests before."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
