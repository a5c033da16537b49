"""JAX (big_vision) and other checkpoints to safetensors and back; publishing to the Hub."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if __name__ == "conversion":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.conversion; run `pip install -e .` in the repository first"
    )

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Choices
    from .converter import Options, Result, convert
    from .errors import AnotherFileError, CheckpointError, VerificationError
    from .formats import open_checkpoint
    from .plan import NewSizes
    from .released.catalogue import entries, find
    from .resize import resize_kernel

__all__ = [
    "AnotherFileError",
    "Checkpoint",
    "CheckpointError",
    "Choices",
    "NewSizes",
    "Options",
    "Result",
    "VerificationError",
    "convert",
    "entries",
    "find",
    "open_checkpoint",
    "resize_kernel",
]
# The lighter ones first: each is imported when something in it is asked for.
_MODULES = ("errors", "resize", "plan", "checkpoint", "released.catalogue", "formats", "converter")


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = getattr(import_module(f".{module}", __name__), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
