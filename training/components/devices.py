"""Which backend the devices of a process need."""

import torch

from .backend import Backend


def backend_for(*devices: torch.device) -> Backend:
    """What the devices of one process need."""
    if all(device.type != "xla" for device in devices):
        return Backend()
    from .xla import XlaBackend

    return XlaBackend()
