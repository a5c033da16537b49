"""What of a dual model belongs to which tower, and locked towers as in LiT (arXiv 2111.07991).

The one place that knows names: learning rates, weight decay, logged gradient norms and locks all ask here.
"""

import re
from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.tensor import DTensor


TOWERS = ("vision", "text")
HEAD = "head"
_TOWER = re.compile(r"(?:^|\.)(vision|text)_(model|adapter)\.")


def part_of(name: str) -> str | None:
    """The part of a dual model that a parameter of this name belongs to.

    Returns:
        "vision" or "text"; "vision_adapter" or "text_adapter" for a new head on top of a tower from elsewhere, which
        is neither locked nor slowed down with its tower; "head" for `logit_scale` and `logit_bias`; else None.
    """
    if name.endswith(("logit_scale", "logit_bias")):
        return HEAD
    found = _TOWER.search(name)
    if found is None:
        return None
    tower, kind = found.groups()
    return tower if kind == "model" else f"{tower}_adapter"


def core_model(model: nn.Module) -> nn.Module:
    """The model without the wrappers of DDP, torch.compile or PEFT."""
    core = extract_model_from_parallel(model, keep_torch_compile=False)
    return core.get_base_model() if hasattr(core, "get_base_model") else core


def loss_head(core: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`logit_scale` and `logit_bias`, which a model with the softmax loss need not have."""
    scale, bias = core.logit_scale, core.logit_bias
    assert isinstance(scale, torch.Tensor)
    assert bias is None or isinstance(bias, torch.Tensor)
    return scale, bias


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter as one tensor, also where FSDP has sharded it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def check_towers(towers: Sequence[str]) -> None:
    """
    Raises:
        ValueError: for a name that is no tower's.
    """
    for tower in towers:
        if tower not in TOWERS:
            raise ValueError(f"lock_towers: {tower!r} is no tower; choose from {', '.join(TOWERS)}")


def lock_towers(model: nn.Module, towers: Sequence[str]) -> list[nn.Module]:
    """Take towers out of training, ours or those of other models: no gradient, no optimiser state, no dropout.

    A head that was put on top of a tower from elsewhere (`vision_adapter`, `text_adapter`) is new and stays trained.

    Args:
        model: a dual model with `vision_model` and `text_model`.
        towers: "vision", "text".

    Returns:
        The locked modules. `model.train()` puts them into train mode again; call `.eval()` on them after it.

    Raises:
        ValueError: for another name, or if nothing but the temperature and the bias would be trained.
    """
    check_towers(towers)
    locked = [model.get_submodule(f"{tower}_model") for tower in towers]
    for module in locked:
        module.requires_grad_(False).eval()
    if all(part_of(name) == HEAD for name, parameter in model.named_parameters() if parameter.requires_grad):
        what = f"lock_towers={list(towers)}" if towers else "requires_grad=False on the model's parameters"
        raise ValueError(f"{what} leaves nothing to train but the temperature and the bias")
    return locked
