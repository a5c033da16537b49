"""Locked towers, as in LiT (arXiv 2111.07991): no gradient, no optimiser state, no dropout."""

from collections.abc import Sequence

from torch import nn


TOWERS = ("vision", "text")


def lock_towers(model: nn.Module, towers: Sequence[str]) -> list[nn.Module]:
    """Take towers out of training, ours or those of other models.

    A head that was put on top of a tower from elsewhere (`vision_adapter`, `text_adapter`) is new and stays trained.

    Args:
        model: a dual model with `vision_model` and `text_model`.
        towers: "vision", "text".

    Returns:
        The locked modules. `model.train()` puts them into train mode again; call `.eval()` on them after it.

    Raises:
        ValueError: for another name, or if nothing but the temperature and the bias would be trained.
    """
    for tower in towers:
        if tower not in TOWERS:
            raise ValueError(f"lock_towers: {tower!r} is no tower; choose from {', '.join(TOWERS)}")
    locked = [getattr(model, f"{tower}_model") for tower in towers]
    for module in locked:
        module.requires_grad_(False).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not set(trained) - {"logit_scale", "logit_bias"}:
        raise ValueError(f"lock_towers={list(towers)} leaves nothing to train but the temperature and the bias")
    return locked
