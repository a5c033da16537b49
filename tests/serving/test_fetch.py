"""URLs lead to public addresses or nowhere."""

import asyncio
import http.server
import socket
import threading
import time
from dataclasses import replace

import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.batcher import QueueFull
from modeling_siglip_ext.serving.encoder import Facts
from modeling_siglip_ext.serving.fetch import Fetcher, FetchError, is_public
from modeling_siglip_ext.serving.held import Held
from modeling_siglip_ext.serving.metrics import Metrics
from modeling_siglip_ext.serving.schemas import EmbeddingsRequest, Link
from modeling_siglip_ext.serving.service import Service
from modeling_siglip_ext.serving.settings import EncoderSettings, Limits, ServerSettings


PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
    *("::127.0.0.1", "::10.0.0.1", "::ffff:0:127.0.0.1", "fec0::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:1::", "ff02::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_of_the_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_what_is(address):
    assert is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self):
        self.server.seen.append(self.path)
        name, _, rest = self.path[1:].partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("location", rest)
            self.end_headers()
        elif name == "missing":
            self.send_error(404)
        elif name == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            self.drip()
        elif name == "drip":
            self.send_response(200)
            self.end_headers()
            self.drip()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * int(name or 3))

    def drip(self):
        for _ in range(100):
            try:
                self.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    """A server on this machine, whose address stands for a public one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))  # looks so often whether it is to end
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(web):
    return Fetcher(100, allowed=lambda address: address == "127.0.0.1", ports=(web.server_port,))


@pytest.fixture
def base(web):
    return f"http://127.0.0.1:{web.server_port}"


def test_an_allowed_address_is_fetched_also_after_a_redirect(fetch, base):
    assert fetch(f"{base}/5") == b"xxxxx"
    assert fetch(f"{base}/to//7") == b"x" * 7


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/101", "more than 100 bytes"),
        ("/missing", "status 404"),
        ("/to/http://169.254.169.254/latest", "port 80"),
        ("/to/http://[::1]:{port}/5", "not in the public internet"),
        ("/to/file:///etc/passwd", "status 302|not fetched"),
        ("/to/ftp://127.0.0.1/x", "not fetched"),
        ("/to//to//to//to//to/http://127.0.0.1:{port}/to//5", "302|not fetched"),
    ],
)
def test_what_is_refused(fetch, base, web, path, said):
    with pytest.raises(FetchError, match=said):
        fetch(base + path.format(port=web.server_port))


def test_by_default_this_machine_is_not_reached(web, base):
    fetch = Fetcher(100, ports=(web.server_port, 80))
    names = (base, f"http://localhost:{web.server_port}", f"http://0x7f.1:{web.server_port}", "http://2130706433/")
    for url in names:
        with pytest.raises(FetchError, match="not in the public internet"):
            fetch(url)
    with pytest.raises(FetchError, match="port 22 is not allowed"):
        Fetcher(100)("http://127.0.0.1:22/")
    assert web.seen == []


def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_the_one(monkeypatch, fetch, web):
    """DNS rebinding: a second look-up would have another answer."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked = []

    def resolve(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetch(f"http://rebinding.example:{web.server_port}/5") == b"xxxxx"
    assert asked == ["rebinding.example"]
    with pytest.raises(FetchError, match="not in the public internet"):
        fetch(f"http://rebinding.example:{web.server_port}/5")
    answers.append(["127.0.0.1", "10.0.0.1"])  # one of several is enough
    with pytest.raises(FetchError, match="not in the public internet"):
        fetch(f"http://mixed.example:{web.server_port}/5")


@pytest.mark.parametrize("what", ["headers", "drip"])
def test_a_server_that_drips_does_not_hold_a_thread(what, fetch, base):
    with pytest.raises(FetchError, match="TimeoutError"):
        replace(fetch, seconds=0.3)(f"{base}/{what}")


def test_environments_proxies_are_not_asked(monkeypatch, fetch, base):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetch(f"{base}/5") == b"xxxxx"


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http:///x", "https://127.0.0.1:99999/", "http://a b/", "gopher://x"]
)
def test_what_is_no_url_is_an_error_of_ours(url):
    with pytest.raises(FetchError, match=r"^(?!.*\(str\))"):
        Fetcher(100)(url)


def test_what_is_fetched_shares_the_memory_of_requests(fetch, base):
    """Of three images of 60 bytes two find room; a request that is refused gives back what it had."""
    settings = ServerSettings((EncoderSettings("tiny"),), "tiny", allow_urls=True, limits=Limits(body=100, held=190))
    service = Service(settings, [], Facts(4, 1.0, 0.0, "sigmoid"), Metrics())
    links = [Link(f"{base}/60")] * 3
    several = [{"type": "image_url", "image_url": {"url": link.url}} for link in links]

    async def main():
        async with service.running():
            service.fetcher = fetch
            with service.held.share() as share:
                with pytest.raises(FetchError):
                    await service.fetch(Link(f"{base}/missing"), share)
                found = await asyncio.gather(*(service.fetch(link, share) for link in links[:2]))
                assert [len(item.content) for item in found] == [60, 60]
                assert service.held.size == 120
            assert service.held.size == 0
            with pytest.raises(QueueFull):
                await service.embeddings(EmbeddingsRequest(input=several))
            assert service.held.size == 0

    asyncio.run(main())


def test_a_request_that_is_over_holds_nothing():
    held = Held(10)
    with held.share() as first, held.share() as second:
        assert first.take(6)
        assert not second.take(5)
        assert second.take(4)
        first.give_back(2)
        assert held.size == 8
    assert held.size == 0
    assert not first.take(1)
    first.give_back(1)
    assert held.size == 0
