"""Processes that kill themselves in the middle of what they do, always at the same place."""

import os
import signal
import sys
from collections.abc import Callable


def count_events(last: int | None) -> Callable[[], int]:
    """Count this process's events from now on, and kill it as it comes to number `last`; gives how many there were.

    Python's audit events are what it asks of the system: files to open, to rename, to remove, folders to make. Killed
    before one of them, it leaves behind what a process leaves that is killed at any moment since the one before, and
    what that is does not depend on how busy the machine is.
    """
    events = 0

    def count(event: str, _: tuple) -> None:
        nonlocal events
        if event.startswith(("open", "os.", "shutil.", "tempfile.")):
            events += 1
            if events == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return lambda: events
