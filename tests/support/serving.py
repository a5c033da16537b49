"""A server in a process of its own, and a client with nothing between it and the wire."""

import base64
import http.client
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class RunningServer:
    """A server and the file that its log goes to."""

    url: str
    process: subprocess.Popen
    log: Path
    key: str | None = None

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        known = {"authorization": f"Bearer {self.key}"} if self.key else {}
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        try:
            connection.request(method, path, body, {**known, "content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def post(self, path: str, **fields: Any) -> Answer:
        return self.send("POST", path, json.dumps(fields).encode())

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def workers(self) -> list[int]:
        """Process numbers of those that compute."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, command in found.items() if b"spawn_main" in command]


@contextmanager
def serving(model: Path, log: Path, *options: object, key: str | None = None) -> Iterator[RunningServer]:
    """A server on a free port, with one thread; killed in the end if it still runs."""
    if key is not None:
        key_file = log.with_suffix(".keys")
        key_file.write_text(f"another-key\n{key}\n")
        options = (*options, "--api_key_file", key_file)
    command = [sys.executable, "-m", "modeling_siglip_ext.serving", str(model), "--port", "0", *map(str, options)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, log.read_text()
            yield RunningServer(address, process, log, key)
        finally:
            process.kill()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
