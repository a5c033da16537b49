"""The sigmoid loss with a share of its negatives, to study what they contribute (SigLIP paper, section 4.7).

A reference for experiments on one process: it has the memory and speed of the eager loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses.checks import check_arguments
from modeling_siglip_ext.losses.eager import affine_cosines


CHOICES = ("random", "easiest", "hardest")


def sigmoid_loss_of_some_negatives(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    *,
    share: float,
    choice: str,
    pair_ids: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """`sigmoid_loss` over all positive pairs and, for each image, a share of its negative ones.

    Args:
        image_embeds, text_embeds, logit_scale, logit_bias, pair_ids: As for `sigmoid_loss`; one process only.
        share: Between 0 and 1, rounded to whole negatives of each image.
        choice: "random", "easiest" (smallest loss) or "hardest" (largest loss).
        generator: For the random choice.

    Returns:
        Scalar: the sum over the pairs that are left, divided by the batch size.

    Raises:
        ValueError: A share outside [0, 1], an unknown choice, or arguments that `sigmoid_loss` refuses.
    """
    arguments = image_embeds, text_embeds, logit_scale, logit_bias, pair_ids
    check_arguments("", *arguments, "none", "eager")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if choice not in CHOICES:
        raise ValueError(f"choice must be one of {CHOICES}, got {choice!r}")
    if pair_ids is None:
        pair_ids = torch.arange(image_embeds.shape[0], device=image_embeds.device)

    logits = affine_cosines(image_embeds, text_embeds, logit_scale, logit_bias)
    positives = pair_ids[:, None] == pair_ids[None, :]
    losses = -F.logsigmoid(torch.where(positives, logits, -logits))
    if choice == "random":
        preference = torch.rand(losses.shape, generator=generator, device=losses.device)
    else:
        preference = losses.detach() if choice == "hardest" else -losses.detach()
    # The place of each pair in its image's order of preference, positives behind all negatives.
    order = preference.masked_fill(positives, -torch.inf).argsort(1, descending=True).argsort(1)
    negatives = (~positives).sum(1, keepdim=True)
    kept = positives | (order < (share * negatives).round())
    return (losses * kept).sum() / image_embeds.shape[0]
