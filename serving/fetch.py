"""Images by URL, from public addresses only.

Every connection resolves its host once, looks at the addresses, and connects to one that it has looked at: neither a
redirect nor a DNS record that changes between two look-ups leads into the server's own network.
"""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast


CHUNK = 1 << 16
# they wrap IPv4 addresses, private ones too (NAT64, 6to4, Teredo, compatible, translated), or are of a site
WRAPPING = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0:0/96")
NOT_PUBLIC = tuple(ipaddress.ip_network(network) for network in (*WRAPPING, "fec0::/10"))


class FetchError(ValueError):
    """An image that is not fetched, with the reason."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: none that is private, loopback, link-local, shared or reserved.

    Example:

    ```python
    >>> [is_public(address) for address in ("1.1.1.1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]

    ```"""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in NOT_PUBLIC):
            return False
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True)
class Fetcher:
    """How images are fetched.

    Args:
        max_bytes: of an image.
        seconds: for all of it, redirects included.
        allowed: whether an address may be connected to.
        ports: that URLs may name.
    """

    max_bytes: int
    seconds: float = 15.0
    allowed: Callable[[str], bool] = is_public
    ports: tuple[int, ...] = (80, 443)

    def connect(self, host: str, port: int, deadline: float) -> socket.socket:
        """
        Raises:
            FetchError: a port or an address that is not allowed.
            OSError: no connection.
        """
        if port not in self.ports:
            raise FetchError(f"port {port} is not allowed")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if not all(self.allowed(str(entry[4][0])) for entry in found):
            raise FetchError("the host is not in the public internet")
        family, kind, protocol, _, address = found[0]
        connection = TimedSocket(family, kind, protocol)
        connection.deadline = deadline
        connection.settimeout(remaining(deadline))
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection

    def __call__(self, url: str) -> bytes:
        """The bytes behind an http or https URL.

        Raises:
            FetchError: they are not fetched.
        """
        deadline = time.monotonic() + self.seconds
        opener = urllib.request.OpenerDirector()  # build_opener's knows files, FTP and proxies, too
        for handler in (
            Handler(self, deadline),
            FewRedirects(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        try:
            with opener.open(url, timeout=self.seconds) as response:
                return self.read(response, deadline)
        except FetchError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            raise FetchError(f"the URL answers with status {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            # the reason of a URLError may be one of ours, or words
            reason = getattr(error, "reason", error)
            told = isinstance(reason, (FetchError, str))
            what = str(reason) if told else f"it cannot be reached ({type(reason).__name__})"
            raise FetchError(f"the URL is not fetched: {what}") from None

    def read(self, response: Any, deadline: float) -> bytes:
        parts, size = [], 0
        while chunk := response.read1(CHUNK):
            size += len(chunk)
            if size > self.max_bytes:
                raise FetchError(f"the URL has more than {self.max_bytes} bytes")
            parts.append(chunk)
            remaining(deadline)
        return b"".join(parts)


def remaining(deadline: float) -> float:
    """Seconds until then; raises TimeoutError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("too slow")
    return seconds


class TimedSocket(socket.socket):
    """Every reading ends at the deadline: a timeout alone would begin anew with each byte."""

    deadline: float

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(remaining(self.deadline))
        return super().recv_into(buffer, nbytes, flags)


class SecureTimedSocket(ssl.SSLSocket):
    """The same."""

    deadline: float

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(remaining(self.deadline))
        return super().recv_into(buffer, nbytes, flags)


class FewRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 3


class Connection(http.client.HTTPConnection):
    """Connects where a Fetcher lets it."""

    def __init__(self, host: str, *, fetcher: Fetcher, deadline: float, **options: Any):
        super().__init__(host, **options)
        self.fetcher, self.deadline = fetcher, deadline

    def connect(self) -> None:
        self.sock = self.fetcher.connect(self.host, self.port, self.deadline)


class SecureConnection(Connection):
    """The same; the certificate is checked against the name in the URL."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        context.sslsocket_class = SecureTimedSocket
        self.sock.settimeout(remaining(self.deadline))
        self.sock = cast(SecureTimedSocket, context.wrap_socket(self.sock, server_hostname=self.host))
        self.sock.deadline = self.deadline


class Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https through such connections."""

    def __init__(self, fetcher: Fetcher, deadline: float):
        super().__init__()
        self.options = {"fetcher": fetcher, "deadline": deadline}

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(Connection, **self.options), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(SecureConnection, **self.options), request)

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_
