"""Memory that all requests share: the bytes of their bodies, and of the images that are fetched for them."""

from collections.abc import Generator
from contextlib import contextmanager


class Held:
    """Bytes of all requests together; for one thread.

    Args:
        limit: of them.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0

    @contextmanager
    def share(self) -> Generator["Share"]:
        """What one request holds; it is given back with the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back(share.size)
            share.over = True


class Share:
    """Bytes of one request."""

    def __init__(self, held: Held):
        self.held, self.size, self.over = held, 0, False

    def take(self, count: int) -> bool:
        """Hold more; False where there is no room, or where the request is over."""
        if self.over or self.held.size + count > self.held.limit:
            return False
        self.size += count
        self.held.size += count
        return True

    def give_back(self, count: int) -> None:
        if not self.over:
            self.size -= count
            self.held.size -= count
