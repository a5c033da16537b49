"""Start the workers, serve, and stop when told to."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn

from .app import create_app
from .encoder import Facts
from .metrics import Metrics
from .service import Service
from .settings import LOOPBACK, ServerSettings
from .workers import Worker


logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Prints its address as soon as it listens: whoever started it waits for that line."""

    def __init__(self, config: uvicorn.Config, address: str):
        super().__init__(config)
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.address, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """While it still starts, labels may be embedded for long, and nothing was accepted that must be answered:
        the process ends as it would without a handler, and its workers with it."""
        if not self.started:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted by then is answered.

    Raises:
        OSError: the address is taken, or the model cannot be read.
        ValueError: the model cannot be served.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if settings.host not in LOOPBACK and not settings.keys:
        logger.warning("whoever reaches %s can use this server: there is no --api_key_file", settings.host)
    address = (settings.host, settings.port)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise OSError(f"--host {settings.host} --port {settings.port}: {error.strerror}") from error
        workers = [Worker(encoder) for encoder in settings.encoders]
        try:
            facts = asyncio.run(start(workers))
            service = Service(settings, workers, facts, Metrics())
            run_app(service, listener)
        finally:
            for worker in workers:
                worker.stop()


async def start(workers: Sequence[Worker]) -> Facts:
    return (await asyncio.gather(*(worker.start() for worker in workers)))[0]


def run_app(service: Service, listener: socket.socket) -> None:
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,  # it has queries in it; the guard writes a line of its own
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server = Server(config, f"http://{host}:{listener.getsockname()[1]}")
    # uvicorn ends well upon these, and then raises them again: they have done their work
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    logger.info("process %d serves %s", os.getpid(), settings.name)
    server.run(sockets=[listener])
