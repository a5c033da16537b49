"""The losses in float64 in blocks of rows: value, gradients of the head, and those of some rows of the embeddings.

Written from the papers' expressions and not from the package's, whose errors it is to show. All rows are swept for the
value; the gradients of a sample of rows need only the logits of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F


SAMPLED_ROWS = 256
BLOCK = 2**27  # logits at a time: 1 GiB in float64


@dataclass(frozen=True)
class Reference:
    """What is exact.

    Args:
        rows: The sampled rows, (R,).
        images, texts: Gradients of these rows, (R, D), float64.
        value, scale, bias: Loss and gradients of the loss head; None where the sweep was left out, and for the bias of
            a softmax.
    """

    rows: torch.Tensor
    images: torch.Tensor
    texts: torch.Tensor
    value: float | None
    scale: float | None
    bias: float | None


def blocks(pairs: int) -> Iterator[slice]:
    rows = max(1, BLOCK // pairs)
    return (slice(start, min(start + rows, pairs)) for start in range(0, pairs, rows))


def sigmoid_reference(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, sweep: bool
) -> Reference:
    """Of sum over all pairs of log(1 + exp(-label logit)) / B, with logit = exp(scale) cos + bias."""
    images, texts, factor, shift = images.double(), texts.double(), scale.double().exp(), bias.double()
    pairs = len(images)

    def logits(some: torch.Tensor, rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """label * logit of some rows with all others, and the labels."""
        z = (some @ others.mT).mul_(factor).add_(shift)
        own = torch.arange(len(rows), device=rows.device), rows
        z.neg_()
        z[own] = -z[own]
        return z, own

    def gradient(some: torch.Tensor, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        z, own = logits(some, rows, others)
        slopes = torch.sigmoid(z.neg_())
        slopes[own] = -slopes[own]
        return (slopes @ others) * (factor / pairs)

    rows = sampled(pairs, images.device)
    parts = (gradient(one[rows], rows, other) for one, other in ((images, texts), (texts, images)))
    image_rows, text_rows = parts
    if not sweep:
        return Reference(rows, image_rows, text_rows, None, None, None)
    totals = images.new_zeros(3)
    for block in blocks(pairs):
        z, own = logits(images[block], torch.arange(block.start, block.stop, device=images.device), texts)
        totals[0] += F.softplus(-z, threshold=700).sum()
        slopes = torch.sigmoid(-z)
        slopes[own] = -slopes[own]
        z.neg_()
        z[own] = -z[own]  # the logits again
        totals[1] += (slopes * z.sub_(shift)).sum()
        totals[2] += slopes.sum()
    value, scale_gradient, bias_gradient = (totals / pairs).tolist()
    return Reference(rows, image_rows, text_rows, value, scale_gradient, bias_gradient)


def softmax_reference(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> Reference:
    """Of the mean cross-entropy of texts given images and of images given texts, halved."""
    images, texts, factor = images.double(), texts.double(), scale.double().exp()
    pairs = len(images)
    by_image, by_text = images.new_empty(pairs), images.new_full((pairs,), -torch.inf)
    for block in blocks(pairs):
        z = (images[block] @ texts.mT).mul_(factor)
        by_image[block] = z.logsumexp(1)
        by_text = torch.logaddexp(by_text, z.logsumexp(0))
    own = (images * texts).sum(1) * factor
    value = ((by_image + by_text) / 2 - own).mean().item()

    def gradient(one: torch.Tensor, other: torch.Tensor, one_sums: torch.Tensor, other_sums: torch.Tensor):
        z = (one[rows] @ other.mT).mul_(factor)
        slopes = (z - one_sums[rows, None]).exp().add_((z - other_sums).exp()).div_(2)
        slopes[torch.arange(len(rows), device=rows.device), rows] -= 1
        return (slopes @ other) * (factor / pairs)

    rows = sampled(pairs, images.device)
    scale_gradient = images.new_zeros(())
    for block in blocks(pairs):
        z = (images[block] @ texts.mT).mul_(factor)
        slopes = (z - by_image[block, None]).exp().add_((z - by_text).exp()).div_(2)
        scale_gradient += (slopes * z).sum()
    scale_gradient = ((scale_gradient - own.sum()) / pairs).item()
    sums = by_image, by_text
    return Reference(
        rows, gradient(images, texts, *sums), gradient(texts, images, *sums[::-1]), value, scale_gradient, None
    )


def sampled(pairs: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(0, pairs - 1, min(pairs, SAMPLED_ROWS), device=device, dtype=torch.float64).long()


def errors(reference: Reference, value: torch.Tensor, arguments: list[torch.Tensor]) -> dict[str, float]:
    """Relative errors of a loss and of the gradients in its arguments: images, texts, scale and perhaps bias."""
    images, texts, *head = arguments
    found = {}
    if reference.value is not None:
        found["value"] = abs(value.double().item() - reference.value) / abs(reference.value)
    for name, argument, exact in (("images", images, reference.images), ("texts", texts, reference.texts)):
        got = argument.grad[reference.rows].double()
        found[name] = ((got - exact).norm() / exact.norm()).item()
    for name, argument, exact in zip(("scale", "bias"), head, (reference.scale, reference.bias)):
        if exact is not None and argument.grad is not None:
            found[name] = abs(argument.grad.double().item() - exact) / abs(exact)
    return found
