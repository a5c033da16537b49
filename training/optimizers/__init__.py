"""The papers' optimisers, chosen by name: `optim: scaling_vit_adafactor` in a recipe.

All of them take parameter groups with `lr` and `weight_decay`, where a step takes `lr × weight_decay` off a weight;
`parameter_groups.py` puts big_vision's convention into these numbers.
"""

from .adamw_bf16 import AdamWBf16
from .choice import OPTIMIZERS, build_optimizer, optimizer_class, takes_betas
from .scaling_vit_adafactor import ScalingViTAdafactor


__all__ = ["OPTIMIZERS", "AdamWBf16", "ScalingViTAdafactor", "build_optimizer", "optimizer_class", "takes_betas"]
