"""Who waits for the device in a training step: on CUDA torch tells, on a CPU whatever reads a tensor's values does.

On a CPU nothing ever waits, but what would wait elsewhere is known: the operators that bring a number to the host
(`.item()`, `bool(tensor)` and the like all end in one), those whose shape depends on values, and the methods and
factories that copy between host and device.
"""

import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback


ROOT = str(Path(__file__).parents[2])
ATEN = torch.ops.aten
READING = {
    ATEN._local_scalar_dense,
    ATEN.equal,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN._unique,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN.unique_consecutive,
    ATEN.bincount,
}
COPYING = {"tolist", "numpy", "cpu", "__array__"}
FACTORIES = {torch.tensor, torch.as_tensor}
# Its body is the same on every device; those of the contrastive losses have other ways on a CPU.
OPENED = "siglip_ext::vocabulary_loss"


class Waits:
    """Collects what would wait, with the lines of this repository that asked for it.

    Args:
        on_the_host: gives tensors that are on the host whatever the device is, which may be read.
    """

    def __init__(self, on_the_host: Callable[[], Iterable[torch.Tensor]] = list):
        self.on_the_host = on_the_host
        self.found: list[str] = []
        self._modes = ExitStack()

    def __enter__(self) -> "Waits":
        self._free = {tensor.data_ptr() for tensor in self.on_the_host()}
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._modes.close()

    def note(self, what: str, tensor: torch.Tensor | None = None) -> None:
        if tensor is not None and tensor.data_ptr() in self._free:
            return
        lines = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack() if own(frame.filename)]
        self.found.append(f"{what} at {' < '.join(reversed(lines[-3:]))}")


def own(filename: str) -> bool:
    return filename.startswith(ROOT) and ".venv" not in filename and filename != __file__


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in COPYING and isinstance(args[0], torch.Tensor):
            self.waits.note(name, args[0])
        elif func in FACTORIES and kwargs.get("device") is not None and not isinstance(args[0], torch.Tensor):
            self.waits.note(f"{name}(…, device=…)")
        elif name == "new_tensor":
            self.waits.note(name)
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in READING:
            self.waits.note(str(func), args[0])
        elif packet in (ATEN.index, ATEN.index_put, ATEN.index_put_):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.waits.note(f"{func} by a mask")
        elif func is ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.waits.note(str(func))
        elif func.name().split(".")[0] == OPENED:
            with self:
                return OPDEFS[f"{OPENED}"]._init_fn(*args, **kwargs)
        return func(*args, **kwargs)


class _CudaWaits(AbstractContextManager):
    """An error at the place, with its own traceback."""

    found: tuple[str, ...] = ()

    def __enter__(self) -> "_CudaWaits":
        self._before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.cuda.set_sync_debug_mode(self._before)


class NoWaiting(TrainerCallback):
    """Watches steps of a Trainer after the first `warm_up` ones, from the first forward to after the optimizer.

    What comes after a step, logging and saving, may wait. Add it last.
    """

    def __init__(self, warm_up: int = 2):
        self.warm_up = warm_up
        self.steps = 0
        self.found: list[str] = []
        self._watching: Any = None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step < self.warm_up:
            return
        states = kwargs["optimizer"].state.values()
        counters = [value["step"] for value in states if isinstance(value.get("step"), torch.Tensor)]
        cuda = args.device.type == "cuda"
        self._watching = _CudaWaits() if cuda else Waits(lambda: counters)
        self._watching.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.stop()

    def on_train_end(self, args, state, control, **kwargs):
        self.stop()

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self.found += self._watching.found
            self.steps += 1
            self._watching = None


def assert_nothing_waits(trainer: Any, steps: int = 2, warm_up: int = 2) -> None:
    """Train for some steps, of which those after the first ones must not wait for the device."""
    watch = NoWaiting(warm_up)
    trainer.args.max_steps = warm_up + steps
    trainer.add_callback(watch)
    try:
        trainer.train()
    finally:
        watch.stop()
    assert watch.steps == steps
    assert not watch.found, "\n".join(["these wait for the device:", *sorted(set(watch.found))])
