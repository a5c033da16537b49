"""Which backend the devices of a process need."""

import torch
from torch import distributed

from .backend import Backend


def backend_for(*devices: torch.device) -> Backend:
    """What the devices of one process need."""
    if all(device.type != "xla" for device in devices):
        return Backend()
    from .xla import XlaBackend

    return XlaBackend()


def share_of_the_host(device: torch.device) -> tuple[int, int]:
    """Number of this process and of those that may share what is done on the host, and tell each other of it.

    On XLA devices each process does all of it: objects are not exchanged there.
    """
    together = distributed.is_available() and distributed.is_initialized() and not backend_for(device).one_graph
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
