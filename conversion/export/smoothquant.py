"""SmoothQuant (arXiv 2211.10438): what makes activations hard to write in 8 bits is moved into the weights after them.

A few channels of a norm's output are much larger than the rest, and one scale for all of them leaves the rest a few
steps. Each channel of the norm is divided by a factor of its own, and the columns of the products that read it are
multiplied by it. The factors are powers of two, so that not a bit of any product changes in any floating-point type,
and no name: the model is saved as it was, in stock form too.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modeling_siglip_ext.encoding import evaluating


ALPHA = 0.5  # how much of an outlier the weights take


def smooth(model: nn.Module, batches: Iterable[Mapping[str, Any]], alpha: float = ALPHA) -> int:
    """Fold the factors into the norms and weights of a model's SigLIP layers, in place.

    Norms whose output is also read elsewhere stay as they are: the last norm of a tower, which is an output, and those
    of foreign towers. So do those of a tower that the batches do not reach.

    Args:
        batches: keyword arguments of the model, on its device; some hundred images or texts like those to come.

    Returns:
        The number of norms that were folded.
    """
    pairs = list(foldable(model))
    largest = largest_activations(model, [norm for norm, _ in pairs], batches)
    pairs = [(norm, readers) for norm, readers in pairs if norm in largest]
    with torch.no_grad():
        for norm, readers in pairs:
            activations = largest[norm]
            weights = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers]).amax(dim=0)
            factors = balance(activations, weights, alpha)
            norm.weight.div_(factors)
            norm.bias.div_(factors)
            for reader in readers:
                reader.weight.mul_(factors)
    return len(pairs)


def balance(activations: torch.Tensor, weights: torch.Tensor, alpha: float = ALPHA) -> torch.Tensor:
    """The factor of each channel: activations^alpha / weights^(1 - alpha), as the nearest power of two.

    Args:
        activations: largest magnitude of each channel (D,).
        weights: largest magnitude of each column that reads it (D,).
    """
    # a channel that is always zero, or that nothing reads, has nothing to balance
    used = (activations > 0) & (weights > 0)
    exponents = alpha * activations.float().log2() - (1 - alpha) * weights.float().log2()
    exponents = torch.where(used, exponents, 0).round().clamp(-10, 10)
    return torch.exp2(exponents).to(weights.dtype)


def foldable(model: nn.Module) -> Iterator[tuple[Any, list[Any]]]:
    """The norms that only linear layers read, with those layers; names are those of the stock SigLIP classes."""
    for module in model.modules():
        attention = getattr(module, "self_attn", None)
        if hasattr(module, "layer_norm1") and hasattr(attention, "q_proj"):
            yield module.layer_norm1, [attention.q_proj, attention.k_proj, attention.v_proj]
        for norm in ("layer_norm2", "layernorm"):  # of a layer, of a MAP head
            mlp = getattr(module, "mlp", None)
            if hasattr(module, norm) and hasattr(mlp, "fc1"):
                yield getattr(module, norm), [mlp.fc1]


def largest_activations(
    model: nn.Module, norms: Iterable[nn.Module], batches: Iterable[Mapping[str, Any]]
) -> dict[nn.Module, torch.Tensor]:
    """Of each norm that is reached the largest magnitude of every channel of its output, over all batches (D,)."""
    largest: dict[nn.Module, torch.Tensor] = {}

    def note(norm: nn.Module, _: Any, output: torch.Tensor) -> None:
        found = output.detach().abs().flatten(0, -2).amax(dim=0)
        largest[norm] = torch.maximum(largest[norm], found) if norm in largest else found

    hooks = [norm.register_forward_hook(note) for norm in norms]
    try:
        with evaluating(model):
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
