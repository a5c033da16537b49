"""What training does otherwise on another kind of device: one object, which for most devices does nothing.

`xla.py` has the other one; `devices.py` chooses, and imports torch_xla only where an XLA device is met.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.data import DataLoader
from transformers import TrainerCallback


class Backend(TrainerCallback):
    """A device that needs nothing of its own."""

    one_graph = False
    """Whether a step that does more than the others is another graph, to be compiled as well."""

    def check_launch(
        self, device: torch.device, batch_size: int, mini_batch_size: int | None, shard_parameters: bool
    ) -> None:
        """Take note of how the run is to use the devices.

        Raises:
            ValueError, RuntimeError: for settings, or a way of starting, that do not fit the device.
        """
        if shard_parameters:
            raise ValueError(f"xla_shard_parameters spreads parameters over XLA devices; this run is on {device}")

    def unchanged_float32(self) -> AbstractContextManager[None]:
        """Around the making of the accelerator, so that float32 stays what it is."""
        return nullcontext()

    def shard_batch(self, inputs: dict) -> dict:
        """A batch that has come to the device."""
        return inputs

    def optimizer_settings(self, settings: dict) -> dict:
        """Settings of an optimiser, without what the device lacks."""
        return settings

    def on_the_host(self, loader: DataLoader) -> DataLoader:
        """The loader whose batches are on the host, inside one that moves them to the device."""
        return loader

    def sync(self) -> None:
        """Between two parts of a step that the device must not see as one."""

    def random_state(self, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """Remember the generators of the tensors' devices; the result sets them again."""
        kind = next((tensor.device.type for tensor in tensors if tensor.device.type not in ("cpu", "meta")), None)
        if kind is None:
            return lambda: None
        if kind == "mps":  # one generator, in a module that has no devices to go through
            state = torch.mps.get_rng_state()
            return lambda: torch.mps.set_rng_state(state)
        devices, states = get_device_states(*tensors)
        return lambda: set_device_states(devices, states, device_type=kind)
