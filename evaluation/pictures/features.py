"""What tokens of patches have in common, as colors."""

import torch
from PIL import Image


def feature_colors(tokens: torch.Tensor, size: int) -> list[Image.Image]:
    """Images of the first three principal components of tokens as red, green and blue.

    Colors mean the same in all of the images, and nothing by themselves: what is alike is of one color.

    Args:
        tokens: (N, T, D), of a square grid of patches, row by row; three or more channels.
        size: of the images in pixels.
    """
    rows = tokens.flatten(0, 1).float().cpu()
    centered = rows - rows.mean(0)
    directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)
    # a direction has no sign of its own: the larger part of what it says is positive
    directions = directions * (centered @ directions).pow(3).sum(0).sign()
    found = centered @ directions
    low, high = found.quantile(torch.tensor([0.02, 0.98]), dim=0)
    shares = ((found - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    side = round(tokens.shape[1] ** 0.5)
    pixels = (shares * 255).round().to(torch.uint8).view(len(tokens), side, side, 3)
    return [Image.fromarray(one.numpy()).resize((size, size), Image.Resampling.NEAREST) for one in pixels]
