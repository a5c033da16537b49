"""The state of a module whole, out of it and into it, also where FSDP has sharded its parameters.

FSDP gives such a module's state as shards (`DTensor`), whether its parameters are whole at the moment or not.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from .towers import whole


def whole_state(module: nn.Module, wanted: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a module on the host, by name; every process must call it.

    Args:
        wanted: False where nobody needs them: the process gives its shards and keeps nothing.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        full = whole(tensor.detach())  # one at a time, as all of them together may not fit on the device
        if wanted:
            state[name] = full.cpu().contiguous()
    return state


def load_whole(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put whole tensors into a module, of which each process keeps its shards; each needs all of them.

    Raises:
        RuntimeError: names or shapes differ.
    """
    own = module.state_dict()
    module.load_state_dict({name: _like(tensor, own.get(name)) for name, tensor in state.items()})


def check_wrapping(policy: Any, version: int) -> None:
    """
    Args:
        policy: which modules FSDP makes whole one at a time.
        version: of FSDP.

    Raises:
        ValueError: it goes by size.
    """
    if version == 2 and policy is size_based_auto_wrap_policy:
        raise ValueError(
            "fsdp_config: auto_wrap_policy SIZE_BASED_WRAP takes lists of layers, too, which FSDP 2 cannot shard: "
            "leave it out, and every layer is one"
        )


def layers_to_shard(model: nn.Module) -> list[str]:
    """Names of the classes whose modules FSDP makes whole one at a time: those that models call indivisible.

    Not those that a model lists for another form of it, which accelerate does not find. And none that holds the input
    embeddings, as accelerate shards these by themselves, and cannot shard them twice.
    """
    modules = list(model.modules())
    named = {name for module in modules for name in getattr(module, "_no_split_modules", None) or ()}
    own: Any = getattr(model, "get_input_embeddings", lambda: None)()
    holders = {type(module).__name__ for module in modules if module is not own and own in list(module.modules())}
    return sorted((named & {type(module).__name__ for module in modules}) - holders)


def _like(tensor: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    if not isinstance(own, DTensor):
        return tensor
    # without a source rank nothing is sent: the tensor is here
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)
