"""A model in a process of its own, which may die and be started again."""

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from . import encoder
from .encoder import Encoded, Facts
from .settings import EncoderSettings


class WorkerLost(ChildProcessError):
    """The process died while it loaded the model, or in the middle of a batch."""


class Worker:
    """One process with one model; it computes one batch at a time. Whoever owns it starts it again after `death`."""

    def __init__(self, settings: EncoderSettings):
        self.settings = settings
        self.pool: ProcessPoolExecutor | None = None
        self.standing = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self.standing.is_set()

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
            pid, facts = await asyncio.wrap_future(self.pool.submit(encoder.load, self.settings))
        except BrokenProcessPool as error:
            raise WorkerLost("the process that loaded the model died, as it does where memory is short") from error
        self.process = next(process for process in multiprocessing.active_children() if process.pid == pid)
        self.standing.set()
        return facts

    async def death(self) -> None:
        """Wait until the process is no more; POSIX only."""
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(self.process.sentinel, dead.set)
        try:
            await dead.wait()
        finally:
            loop.remove_reader(self.process.sentinel)
        self.standing.clear()

    async def encode(self, kind: str, items: Sequence[bytes] | Sequence[str]) -> Encoded:
        """Vectors of a batch of one kind; a process that died before is waited for.

        Raises:
            WorkerLost: the process died meanwhile.
        """
        while True:
            await self.standing.wait()
            assert self.pool is not None
            try:
                future = self.pool.submit(encoder.encode, kind, items)
            except BrokenProcessPool:  # `death` is about to notice
                await asyncio.sleep(0.02)
                continue
            try:
                return await asyncio.wrap_future(future)
            except BrokenProcessPool as error:
                raise WorkerLost("the process that computed this died") from error

    def stop(self) -> None:
        """End the process when it has done what it does."""
        self.standing.clear()
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
