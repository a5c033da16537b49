"""Which parameter learns how fast, and which decays: the groups of the papers.

Weight decay acts on kernels only. There are two conventions for its size: torch's AdamW takes `lr × weight_decay` off
a weight at each step, big_vision's optimisers take `schedule × weight_decay`, where the schedule runs from 0 to 1 and
the peak learning rate plays no part. The papers' 1e-4 is of the second kind.
"""

import re
from dataclasses import dataclass

from torch import nn

from ..components.towers import HEAD, TOWERS, part_of


_LAYER = re.compile(r"\.(?:layers?|blocks?|h|stages)\.(\d+)\.")
CONVENTIONS = ("torch", "big_vision")


@dataclass(frozen=True)
class GroupSettings:
    """How learning rate and weight decay vary over a dual model.

    `lr_factors` and `weight_decays` go by part ("vision", "text", "head", see `part_of`); what is not named has factor
    1 and the general weight decay, as has a new head on top of a tower from elsewhere. With `layer_decay` the layer
    below the top one learns `layer_decay` times as fast, the next `layer_decay`² times, down to the embeddings.
    """

    learning_rate: float
    weight_decay: float
    convention: str
    lr_factors: dict[str, float]
    weight_decays: dict[str, float]
    layer_decay: float | None


def kernel_names(model: nn.Module) -> list[str]:
    """Names of the kernels of linear maps and convolutions, the parameters under weight decay.

    Norms, biases, embeddings (tokens and positions), the MAP head's probe, class tokens, `logit_scale` and
    `logit_bias` are left alone (arXiv 2303.15343, sec. 4, and big_vision's `wd_mults` on kernels).
    """
    return [
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        # `in_proj_weight` is the packed query, key and value kernel of the MAP head.
        if name in ("weight", "in_proj_weight") and parameter.ndim >= 2
    ]


def parameter_groups(model: nn.Module, kernels: list[str], settings: GroupSettings) -> list[dict]:
    """Groups for a torch optimiser: each {"params", "lr", "weight_decay"}, the fastest tower's first.

    Logs show the learning rate of the first group; the loss head, which may learn faster by far, comes last.

    Args:
        model: its parameters that require no gradient are left out.
        kernels: names of the parameters under weight decay.
        settings: see `GroupSettings`.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    factors = _layer_factors([name for name, _ in model.named_parameters()], settings.layer_decay)
    decayed = set(kernels)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        part = part_of(name) or ""
        lr = settings.learning_rate * settings.lr_factors.get(part, 1.0) * factors.get(name, 1.0)
        decay = settings.weight_decays.get(part, settings.weight_decay) if name in decayed else 0.0
        if settings.convention == "big_vision" and lr > 0:
            decay /= lr  # torch multiplies by it again
        own_rate = part == HEAD and HEAD in settings.lr_factors
        groups.setdefault((own_rate, -lr, -decay), []).append(parameter)
    return [
        {"params": parameters, "lr": -lr, "weight_decay": -decay}
        for (_, lr, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layer_factors(names: list[str], layer_decay: float | None) -> dict[str, float]:
    """layer_decay to the power of the number of layers between a parameter and the top of its tower."""
    if layer_decay is None:
        return {}
    factors = {}
    for tower in TOWERS:
        own = [name for name in names if part_of(name) == tower]
        layer = {name: int(found.group(1)) for name in own if (found := _LAYER.search(name))}
        depth = max(layer.values(), default=-1) + 1
        for name in own:
            if name in layer:
                below_top = depth - layer[name]
            else:
                below_top = depth + 1 if "embed" in name else 0  # the rest is norm and head, above all layers
            factors[name] = layer_decay**below_top
    return factors
