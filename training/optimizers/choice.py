"""Optimisers by name, with the papers' settings as defaults."""

import torch

from .adamw_bf16 import AdamWBf16
from .scaling_vit_adafactor import ScalingViTAdafactor


OPTIMIZERS = ("scaling_vit_adafactor", "adamw", "adamw_bf16", "lion")
# Of transformers' names, by how they begin.
_WITHOUT_BETAS = ("adafactor", "sgd", "adagrad", "rmsprop", "lomo", "adalomo", "galore_adafactor", "schedule_free_sgd")


def takes_betas(name: str) -> bool:
    """Whether an optimiser, ours or one of transformers, reads `adam_beta1` and `adam_beta2`."""
    return name != "lion" and not name.startswith(_WITHOUT_BETAS)


def optimizer_class(name: str, beta1: float, beta2: float, eps: float) -> tuple[type[torch.optim.Optimizer], dict]:
    """The class of a named optimiser and its settings, but for the learning rate.

    Args:
        name: one of `OPTIMIZERS`.
        beta1, beta2, eps: of Adam. ScalingViT-Adafactor takes beta2 as the cap of its growing decay rate. Lion takes
            none of them: its 0.9 and 0.99 (arXiv 2302.06675) mean something else.

    Raises:
        ValueError: for another name.
        ImportError: for lion without the library that has it.
    """
    match name:
        case "scaling_vit_adafactor":
            return ScalingViTAdafactor, {"momentum": beta1, "beta2_cap": beta2}
        case "adamw":
            return torch.optim.AdamW, {"betas": (beta1, beta2), "eps": eps, "fused": True}
        case "adamw_bf16":
            return AdamWBf16, {"betas": (beta1, beta2), "eps": eps}
        case "lion":
            return _lion(), {}
    raise ValueError(f"no optimiser is called {name!r}; choose from {', '.join(OPTIMIZERS)}")


def build_optimizer(
    name: str, groups: list[dict], *, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """A named optimiser over parameter groups, each with `params`, `lr` and `weight_decay`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.training.optimizers import build_optimizer
    >>> layer = torch.nn.Linear(64, 64)
    >>> optimizer = build_optimizer("scaling_vit_adafactor", [{"params": layer.parameters(), "lr": 1e-3}])

    ```"""
    kind, settings = optimizer_class(name, beta1, beta2, eps)
    return kind(groups, **settings)


def _lion() -> type[torch.optim.Optimizer]:
    try:
        from pytorch_optimizer import Lion
    except ImportError as error:
        raise ImportError('lion needs the library pytorch-optimizer: pip install "siglip-ext[lion]"') from error
    return Lion
