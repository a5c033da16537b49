"""Servers full, stopped and with workers killed; clients that dawdle. A stopped worker stands for a long batch."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from modeling_siglip_ext import encode_texts
from support.serving import RunningServer, serving, until


pytestmark = pytest.mark.long
QUEUE = 8


@pytest.fixture
def own_server(model_folder, tmp_path):
    """One that a test may stop; with short queues, and batches of two texts."""
    with serving(model_folder, tmp_path / "log", "--max_queue", QUEUE, "--max_batch", 1) as running:
        yield running


@contextmanager
def held(server: RunningServer):
    """Its worker does not go on meanwhile."""
    (pid,) = server.workers()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        if pid in server.workers():
            os.kill(pid, signal.SIGCONT)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def taken(server: RunningServer) -> float:
    """Items that have left the queue."""
    return server.metric("siglip_wait_seconds_count")


def fill(server: RunningServer, pool: ThreadPoolExecutor, count: int) -> list:
    """Two requests that the worker has, and `count` that wait for it."""
    before = taken(server)
    futures = [pool.submit(server.post, "/v1/embeddings", input=["first", "second"])]
    until(lambda: taken(server) == before + 2)
    futures += [pool.submit(server.post, "/v1/embeddings", input=f"text {number}") for number in range(count)]
    until(lambda: server.metric("siglip_queue_items") == count)
    return futures


def test_a_full_queue_says_when_to_come_again(own_server):
    with ThreadPoolExecutor(32) as pool:
        with held(own_server):
            waiting = fill(own_server, pool, QUEUE)
            refused = own_server.post("/v1/embeddings", input="one more")
            assert refused.status == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 600
            assert refused.json["error"]["code"] == "overloaded"
            assert own_server.get("/healthz").status == 200
        assert {future.result().status for future in waiting} == {200}
    assert own_server.post("/v1/embeddings", input="one more").status == 200


def test_what_was_accepted_is_answered_after_sigterm(own_server, parts):
    with ThreadPoolExecutor(32) as pool:
        with held(own_server):
            waiting = fill(own_server, pool, QUEUE)
            own_server.process.send_signal(signal.SIGTERM)
            address = urlsplit(own_server.url)

            def closed() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex((address.hostname, address.port)) != 0

            until(closed)
            for pid in own_server.workers():  # a service manager tells all processes of the group
                os.kill(pid, signal.SIGTERM)
        answers = [future.result() for future in waiting]
    assert [answer.status for answer in answers] == [200] * (1 + QUEUE)
    found = [entry["embedding"] for answer in answers for entry in answer.json["data"]]
    texts = ["first", "second", *(f"text {number}" for number in range(QUEUE))]
    np.testing.assert_allclose(found, encode_texts(*parts, texts), rtol=0, atol=1e-5)
    assert own_server.process.wait(60) == 0


def test_a_killed_worker_costs_the_requests_that_it_had(own_server, parts):
    with ThreadPoolExecutor(32) as pool:
        with held(own_server) as pid:
            futures = fill(own_server, pool, QUEUE)
            os.kill(pid, signal.SIGKILL)
            lost, *kept = [future.result() for future in futures]
        assert (lost.status, lost.json["error"]["code"]) == (503, "worker_lost")
        assert "retry-after" in lost.headers
        assert {answer.status for answer in kept} == {200}
    found = [answer.json["data"][0]["embedding"] for answer in kept]
    wanted = encode_texts(*parts, [f"text {number}" for number in range(QUEUE)])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert own_server.metric("siglip_worker_restarts_total") == 1
    # one that dies with nothing to do costs nothing
    (pid,) = own_server.workers()
    os.kill(pid, signal.SIGKILL)
    until(lambda: own_server.metric("siglip_workers_ready") == 0)
    assert own_server.get("/readyz").status == 503
    assert own_server.post("/v1/embeddings", input="a").status == 200
    # and workers do not outlive a server that was killed
    (pid,) = own_server.workers()
    own_server.process.kill()
    until(lambda: gone(pid))


@contextmanager
def starting(model: Path, log: Path, *options: object):
    """A server that was only just started."""
    command = [sys.executable, "-m", "modeling_siglip_ext.serving", str(model), "--port", "0", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, env=environment) as process:
        try:
            yield RunningServer("", process, log)
        finally:
            process.kill()


def test_a_worker_that_dies_while_it_loads_is_one_line(model_folder, tmp_path):
    with starting(model_folder, tmp_path / "log") as server:
        until(lambda: bool(server.workers()))
        os.kill(server.workers()[0], signal.SIGKILL)
        assert server.process.wait(60) == 2
    *_, line = server.log.read_text().splitlines()
    assert line.startswith("siglip-ext-serve: error: the process that loaded the model died")


def test_sigterm_ends_a_server_that_still_embeds_its_labels(model_folder, tmp_path):
    (tmp_path / "sets.json").write_text(json.dumps({"many": [f"label {number}" for number in range(200_000)]}))
    with starting(model_folder, tmp_path / "log", "--label_sets", tmp_path / "sets.json") as server:
        until(lambda: " serves " in server.log.read_text())
        (pid,) = server.workers()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == -signal.SIGTERM
        until(lambda: gone(pid))
    assert "label set many" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_slow_clients_and_those_that_go_away_keep_nobody(server):
    address = urlsplit(server.url)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
    slow = []
    try:
        for text in ("", "Content-Le", "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"):
            connection = socket.create_connection((address.hostname, address.port))
            connection.sendall((head + text).encode())
            slow.append(connection)
        assert server.post("/v1/embeddings", input="a").status == 200
    finally:
        for connection in slow:
            connection.close()
    body = b'{"input": "a text that nobody waits for"}'
    before = taken(server)
    with held(server), ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/v1/embeddings", input="a")
        until(lambda: taken(server) == before + 1)
        with socket.create_connection((address.hostname, address.port)) as connection:
            length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + length).encode() + body)
            until(lambda: server.metric("siglip_queue_items") == 1)
        until(lambda: "POST /v1/embeddings 499" in server.log.read_text())
        (pid,) = server.workers()
        os.kill(pid, signal.SIGCONT)
        assert first.result().status == 200
    assert server.post("/v1/embeddings", input="a").status == 200
    assert taken(server) == before + 2  # the one that went away was not computed
