"""What training on torch_xla needs beside what `Trainer` does: SPMD, one graph for all steps, weights that agree.

Imported only where a tensor is on an XLA device, or where SPMD was asked for.

Two ways to use several devices:

- SPMD (`xla_spmd`): one process a host sees all devices as one. `per_device_train_batch_size` is then the global
  batch; its rows are spread over the devices, the parameters copied to all or, with `xla_shard_parameters`, spread,
  too. Every host reads the whole batch.
- `accelerate launch --tpu` or `torch_xla.launch`: a process or thread for each device. accelerate averages the
  gradients; the weights must be equal from the start, which is checked.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import nn
from torch.utils.data import DataLoader
from torch_xla.utils.checkpoint import checkpoint
from transformers import TrainerControl, TrainerState, TrainingArguments

from modeling_siglip_ext.losses.xla.devices import XlaDevices, check_world_size
from modeling_siglip_ext.losses.xla.tiled import DATA_AXIS

from .backend import Backend
from .towers import core_model


def use_spmd() -> None:
    """Make all devices one, before the first tensor is on any of them; with a mesh, unless there is one."""
    xr.use_spmd()
    if xs.get_global_mesh() is None:
        devices = xr.global_runtime_device_count()
        xs.set_global_mesh(xs.Mesh(np.arange(devices), (devices,), (DATA_AXIS,)))


class XlaBackend(Backend):
    """The Trainer's device where it is one of torch_xla's."""

    one_graph = True
    shard_parameters = False

    def check_launch(
        self, device: torch.device, batch_size: int, mini_batch_size: int | None, shard_parameters: bool
    ) -> None:
        """
        Raises:
            RuntimeError: for processes that do not know of each other.
            ValueError: for a batch that cannot be spread over the devices, or settings that need SPMD.
        """
        self.shard_parameters = shard_parameters
        check_world_size()
        if not xr.is_spmd():
            if shard_parameters:
                raise ValueError("xla_shard_parameters needs xla_spmd=True, in one process a host")
            return
        mesh = xs.get_global_mesh()
        if mesh is None or DATA_AXIS not in (mesh.axis_names or ()):
            raise ValueError(f"under SPMD the global mesh must have an axis {DATA_AXIS!r}; xla_spmd=True makes one")
        devices = mesh.shape()[DATA_AXIS]
        for name, size in (("per_device_train_batch_size", batch_size), ("mini_batch_size", mini_batch_size)):
            if size is not None and size % devices:
                raise ValueError(f"{name}={size} is the batch of all devices under SPMD, and {devices} must divide it")

    @contextmanager
    def unchanged_float32(self) -> Generator[None]:
        """Undo what accelerate does on a TPU for bf16=True: a setting that turns all float32 into bfloat16.

        Weights and the optimiser's state would lose most of their digits, and the logits of the loss theirs.
        Autocast, which bf16=True means everywhere else, is there as well.
        """
        names = ("XLA_USE_BF16", "XLA_DOWNCAST_BF16")
        before = {name: os.environ.get(name) for name in names}
        yield
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def shard_batch(self, inputs: dict) -> dict:
        return shard_batch(inputs)

    def optimizer_settings(self, settings: dict) -> dict:
        """Without the fused kernel, which XLA lacks and does not need: it fuses by itself."""
        return {**settings, "fused": False} if settings.get("fused") else settings

    def on_the_host(self, loader: DataLoader) -> DataLoader:
        return getattr(loader, "dataloader", loader)

    def sync(self) -> None:
        """End the graph here and run it. Without this, what is traced grows from step to step."""
        torch_xla.sync()

    def random_state(self, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """By the seed that random numbers on the device follow from; known to the host."""
        seed = xm.get_rng_state()
        return lambda: xm.set_rng_state(seed)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Before the first step, new or resumed: check the weights, and put everything where it belongs.

        Raises:
            RuntimeError: where the devices of a launch start from different weights.
        """
        core, optimizer = core_model(kwargs["model"]), kwargs["optimizer"]
        check_equal_weights(core)
        _checkpoint_activations(core)
        _steps_to_host(optimizer)
        if self.shard_parameters:
            for parameter in core.parameters():
                kept = [
                    value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, torch.Tensor)
                ]
                _spread([parameter, *(value for value in kept if value.shape == parameter.shape)])
        self.sync()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.sync()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.sync()


def shard_batch(inputs: dict) -> dict:
    """Under SPMD: spread the rows of every tensor over the devices; a last, odd batch of an evaluation stays whole."""
    if xr.is_spmd():
        for value in inputs.values():
            if isinstance(value, torch.Tensor) and value.ndim:
                _shard(value, 0)
    return inputs


def _spread(matrices: list[torch.Tensor]) -> None:
    """Over the devices along the longest side that they divide; vectors and what fits none stay on all devices."""
    shape = matrices[0].shape
    for side in sorted(range(len(shape)), key=lambda side: -shape[side]) if len(shape) > 1 else []:
        if all(_shard(matrix, side) for matrix in matrices):  # of one shape: all or none
            return


def _shard(tensor: torch.Tensor, side: int) -> bool:
    """Spread one side of a tensor over the devices, if they divide it."""
    mesh = xs.get_global_mesh()
    if tensor.shape[side] % mesh.shape()[DATA_AXIS]:
        return False
    xs.mark_sharding(tensor, mesh, tuple(DATA_AXIS if place == side else None for place in range(tensor.ndim)))
    return True


def check_equal_weights(model: nn.Module) -> None:
    """
    Raises:
        RuntimeError: where the devices of a launch start from different weights, naming a parameter.
    """
    devices = XlaDevices()
    if devices.world_size == 1:
        return
    names, parameters = zip(*model.named_parameters())
    with torch.no_grad():
        weights = [parameter.detach().float() for parameter in parameters]
        sums = torch.stack([torch.stack([weight.sum(), weight.square().sum()]) for weight in weights])
        everybody = devices.all_gather(sums[None]).cpu()
    differing = (everybody != everybody[0]).any(dim=2).any(dim=0).tolist()
    if any(differing):
        raise RuntimeError(
            f"{names[differing.index(True)]} differs between the devices, which would train {devices.world_size} "
            "models. Call transformers.set_seed before the model is made, in each of them, or load a checkpoint"
        )


def _checkpoint_activations(model: nn.Module) -> None:
    """Let gradient checkpointing, if it is on, go by torch_xla's function: torch's fails on XLA devices.

    XLA would also see that what is computed twice is the same, and keep it; torch_xla puts a barrier between.
    """
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = checkpoint


def _steps_to_host(optimizer: torch.optim.Optimizer) -> None:
    """Bring the optimiser's step counters to the host, where they are read at each step.

    Trainer loads them on the device, so that each reading would wait for it, and end the graph.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].cpu()
