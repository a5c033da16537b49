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

# each is imported when it is asked for: the catalogue alone needs none of the readers
_PLACES = {
    "AnotherFileError": "errors",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "Choices": "checkpoint",
    "NewSizes": "plan",
    "Options": "converter",
    "Result": "converter",
    "VerificationError": "errors",
    "convert": "converter",
    "entries": "released.catalogue",
    "find": "released.catalogue",
    "open_checkpoint": "formats",
    "resize_kernel": "resize",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


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
