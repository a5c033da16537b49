"""Adapters of PEFT: what is trained beside them is saved with them, and what no class would use is not trained.

PEFT saves its own parameters and whole modules. The temperature and the bias are single parameters, which it neither
trains nor saves under `modules_to_save`; with `bias="all"` it trains biases that it does not save. Plain PEFT loads
whatever an adapter's file names, on any class, so here everything that is trained goes into that file.

torch's `nn.MultiheadAttention`, of which the stock MAP head is made, uses the weight of its `out_proj` without calling
it. An adapter there does nothing in the stock class, nor in ours, and DDP would wait for its gradient.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from modeling_siglip_ext.files import new_file
from modeling_siglip_ext.pooling import PoolingAttention

from .towers import HEAD, core_model, part_of, whole


logger = logging.get_logger(__name__)
WEIGHTS = "adapter_model.safetensors"
BASE = "base_model.model."


def prepare_adapter(model: nn.Module, saves: bool) -> None:
    """Make a model with an adapter train and save what its configuration says; any other model is left as it is.

    Args:
        model: PEFT's wrapper, or a model of transformers after `add_adapter`.
        saves: whether checkpoints will be written.

    Raises:
        ValueError: the model under the adapter is nowhere, so that nobody could use what is saved.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if not configs or "save_pretrained" in vars(model):  # prepared by an earlier Trainer
        return
    if saves and not any(config.base_model_name_or_path for config in configs.values()):
        raise ValueError(
            "the adapter is on a model that was never saved, and without that model it is of no use: save the model, "
            "load it with from_pretrained and put the adapter on that"
        )
    if any(getattr(config, "use_dora", False) for config in configs.values()):
        logger.warning("AutoModel of transformers passes over the magnitudes of DoRA: load this adapter with PEFT")
    core: nn.Module = core_model(model)
    for name in _take_out_unused(core):
        logger.warning("no adapter on %s: torch's attention does not call that layer in the stock class", name)
        for config in configs.values():
            _exclude(config, name)
    wanted = {name for config in configs.values() for name in getattr(config, "modules_to_save", None) or ()}
    for name, parameter in core.named_parameters():
        if part_of(name) == HEAD and name in wanted:
            parameter.requires_grad_(True)
    adapted: Any = model
    vars(model)["save_pretrained"] = partial(_save, model, adapted.save_pretrained)


def is_bare(model: nn.Module) -> bool:
    """Whether it has an adapter of `add_adapter` and is no `PeftModel`: Trainer would seek its whole weights."""
    return bool(getattr(model, "peft_config", None)) and not hasattr(model, "get_base_model")


def load_bare(model: nn.Module, folder: Path) -> None:
    """Put back into a model with adapters of `add_adapter` what was saved of it.

    Raises:
        RuntimeError: the folder lacks something that is trained.
    """
    from peft import set_peft_model_state_dict  # here, as only who has adapters has PEFT

    configs: dict[str, Any] = model.peft_config  # ty: ignore[invalid-assignment]  # PEFT's, no module
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for adapter in configs:
        saved = load_file(folder / ("" if adapter == "default" else adapter) / WEIGHTS)
        tensors = {name.removeprefix(BASE): tensor for name, tensor in saved.items()}
        missing &= set(set_peft_model_state_dict(model, tensors, adapter_name=adapter).missing_keys)
    if missing:
        raise RuntimeError(f"{folder} lacks what is trained here, e.g. {min(missing)}: it is of another adapter")


def _take_out_unused(core: nn.Module) -> list[str]:
    """Put the plain layer back where an adapter is never called; the names of those."""
    found = []
    for name, module in core.named_modules():
        # PEFT's own attention layer, which uses both, keeps the plain one as its base layer
        if isinstance(module, (PoolingAttention, nn.MultiheadAttention)) and not name.endswith("base_layer"):
            layer: Any = module.out_proj
            if hasattr(layer, "get_base_layer"):
                module.out_proj = layer.get_base_layer()
                found.append(f"{name}.out_proj")
    return found


def _exclude(config: Any, name: str) -> None:
    """Let whoever loads the adapter leave out the same layer."""
    before = getattr(config, "exclude_modules", None)
    if isinstance(before, str):
        config.exclude_modules = f"({before})|(.*\\.)?{name.replace('.', '[.]')}"
    else:
        config.exclude_modules = [*(before or ()), name]


def _save(model: nn.Module, save: Callable[..., Any], folder: str, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of a model with an adapter, with all that is trained."""
    result = save(folder, *args, **kwargs)
    configs: dict[str, Any] = model.peft_config  # ty: ignore[invalid-assignment]  # PEFT's, no module
    if not any(config.base_model_name_or_path for config in configs.values()):
        logger.warning("%s is an adapter on a model that was never saved: merge it, or keep the model, too", folder)
    for adapter in configs:
        path = Path(folder) / ("" if adapter == "default" else adapter) / WEIGHTS
        if not kwargs.get("is_main_process", True) or not path.is_file():
            continue
        tensors = load_file(path)
        state: dict[str, torch.Tensor] = kwargs.get("state_dict") or model.state_dict()
        for name, parameter in model.named_parameters():
            key = BASE + name.removeprefix(BASE)
            if parameter.requires_grad and not set(configs) & set(name.split(".")) and key not in tensors:
                tensors[key] = whole(state[name]).detach().cpu().contiguous()
        with new_file(path, replace=True) as draft:
            save_file(tensors, draft, metadata={"format": "pt"})
    return result
