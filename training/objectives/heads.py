"""DINO's head: from features to directions, compared with directions of prototypes (arXiv 2104.14294)."""

import torch
from torch import nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Directions that vectors are compared with: the last layer of DINO's head, weight-normed with a gain of 1.

    torch's weight norm would call the parameter `original0` or `weight_v`. Here it is a `weight`, so that weight decay
    takes it for a kernel (`kernel_names`), as DINO's groups do. Its length changes no output; the decay keeps it
    from growing, and so the direction's learning rate from shrinking.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self) -> torch.Tensor:
        """Unit vectors (K, width), in float32 or better."""
        return unit(self.weight)


class ProjectionHead(nn.Module):
    """Linear, GELU, Linear, GELU, Linear; then unit length.

    Args:
        width: of the features.
        hidden: of the two layers between.
        bottleneck: of the directions.
        prototypes: their number, K.
    """

    def __init__(self, width: int, hidden: int = 2048, bottleneck: int = 256, prototypes: int = 65_536):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = Prototypes(prototypes, bottleneck)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Directions (..., bottleneck) of features (..., width), in float32 or better whatever autocast says."""
        return unit(self.mlp(features.to(self.prototypes.weight.dtype)))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
