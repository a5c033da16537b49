"""A model in a process of its own, which may die and be started again."""

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from . import encoder
from .encoder import Encoded, Facts
from .settings import EncoderSettings


class WorkerLost(Exception):
    """The process died in the middle of a batch."""


class Worker:
    """One process with one model; it computes one batch at a time."""

    def __init__(self, settings: EncoderSettings):
        self.settings = settings
        self.pool: ProcessPoolExecutor | None = None
        self.ready = False

    async def start(self) -> Facts:
        """Start the process, or another one in place of a dead one.

        Raises:
            OSError, ValueError: the model cannot be loaded.
            WorkerLost: the process died over it.
        """
        self.stop()
        self.pool = ProcessPoolExecutor(
            1,
            # threads of torch and of the server would not survive a fork
            mp_context=multiprocessing.get_context("spawn"),
            initializer=encoder.prepare_process,
            initargs=(self.settings.threads, self.settings.max_pixels),
        )
        try:
            facts = await asyncio.wrap_future(self.pool.submit(encoder.load, self.settings))
        except BrokenProcessPool as error:
            raise WorkerLost("the process died while it loaded the model") from error
        self.ready = True
        return facts

    async def encode(self, kind: str, items: Sequence[bytes] | Sequence[str]) -> Encoded:
        """Vectors of a batch of one kind.

        Raises:
            WorkerLost: the process died meanwhile. One that died before, with nothing to do, is replaced first.
        """
        assert self.pool is not None
        try:
            future = self.pool.submit(encoder.encode, kind, items)
        except BrokenProcessPool:
            await self.start()
            future = self.pool.submit(encoder.encode, kind, items)
        try:
            return await asyncio.wrap_future(future)
        except BrokenProcessPool as error:
            self.ready = False
            raise WorkerLost("the process that computed this died") from error

    def stop(self) -> None:
        """End the process when it has done what it does."""
        self.ready = False
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
