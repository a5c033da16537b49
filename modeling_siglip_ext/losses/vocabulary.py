"""Cross-entropy over a large vocabulary without the logits of a batch: a chunk of tokens at a time.

With 256,000 words the logits of a hundred captions fill gigabytes. Here a chunk's logits become, where they stand,
its probabilities and then its gradient, and are gone before the next chunk's. Tokens without weight, as padding is,
cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .autograd import needed, register_gradients
from .tiles import accumulator_dtype, multiplies


CHUNK = 1 << 26  # logits held at once unless told otherwise: 256 MB in float32
WORDS = 1 << 13


class VocabularyLoss(NamedTuple):
    loss: torch.Tensor
    """Sum of the weighted losses of all tokens, a scalar."""
    token_losses: torch.Tensor
    """(N,), without weights and without graph; 0 where the weight is 0."""


def vocabulary_loss(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    chunk_tokens: int | None = None,
    counted: int | None = None,
) -> VocabularyLoss:
    """Cross-entropy of logits `states @ weight.T + bias`, with its gradients computed in the forward.

    Args:
        states: (N, D).
        weight, bias: of the output layer, (V, D) and (V,).
        labels: (N,), within 0 and V - 1.
        token_weights: (N,), no gradient goes there.
        label_smoothing: this much of the target is shared by the other words, as in big_vision.
        chunk_tokens: tokens whose logits exist at once; by default as many as make 64 million logits.
        counted: how many tokens have a weight other than 0, or a number that is larger, where the host knows it. The
            loss is NaN if there are more of them. By default they are counted, which waits for an accelerator.

    Raises:
        ValueError: shapes that do not fit.
    """
    count, vocabulary = len(states), len(weight)
    if labels.shape != (count,) or token_weights.shape != (count,) or bias.shape != (vocabulary,):
        raise ValueError(
            f"{count} states need as many labels and weights, and {vocabulary} words as many biases, got "
            f"{tuple(labels.shape)}, {tuple(token_weights.shape)} and {tuple(bias.shape)}"
        )
    dtype = torch.promote_types(states.dtype, weight.dtype)
    if torch.is_autocast_enabled(states.device.type):
        dtype = torch.get_autocast_dtype(states.device.type)
    dtype = dtype if multiplies(dtype, states.device) else torch.float32
    chunk_tokens = max(1, CHUNK // vocabulary) if chunk_tokens is None else chunk_tokens
    needs = needed((states, weight, bias))
    settings = label_smoothing, chunk_tokens, counted, dtype
    arguments = states, weight, bias, labels, needs, token_weights.detach(), *settings
    loss, *_, token_losses = chunked_vocabulary_loss(*arguments)
    return VocabularyLoss(loss, token_losses.detach())


@torch.library.custom_op("siglip_ext::vocabulary_loss", mutates_args=())
def chunked_vocabulary_loss(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor,
    needs: Sequence[bool],
    token_weights: torch.Tensor,
    label_smoothing: float,
    chunk_tokens: int,
    counted: int | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum, its gradients with respect to the first three arguments, and the tokens' losses.

    Args:
        needs: which of the three gradients to compute; the others come back empty.
        dtype: of the factors of matrix products; sums are in float32 or better.
    """
    exact = accumulator_dtype(dtype)
    needs_states, needs_weight, needs_bias = needs
    grads = [
        argument.new_zeros(argument.shape if need else (0,), dtype=exact)
        for argument, need in zip((states, weight, bias), needs)
    ]
    state_grad, weight_grad, bias_grad = grads
    token_losses = states.new_zeros(len(states), dtype=exact)
    kept, missed = counted_tokens(token_weights, counted)
    off = label_smoothing / max(1, len(weight) - 1)
    on = 1 - label_smoothing - off
    words = weight.to(dtype)
    room = states.new_empty(min(chunk_tokens, len(kept)), len(weight), dtype=exact)
    rough = room if dtype == exact else torch.empty_like(room, dtype=dtype)

    with torch.autocast(states.device.type, enabled=False):
        for rows in kept.split(chunk_tokens):
            own, targets, factors = states[rows].to(dtype), labels[rows, None], token_weights[rows].to(exact)
            logits, product = room[: len(rows)], rough[: len(rows)]
            torch.mm(own, words.t(), out=product)
            if product is not logits:
                logits.copy_(product)
            logits += bias
            losses = -on * logits.gather(1, targets).squeeze(1)
            if label_smoothing:
                losses -= off * logits.sum(1)
            # from here on logits turn into probabilities
            largest = logits.amax(1, keepdim=True)
            total = logits.sub_(largest).exp_().sum(1, keepdim=True)
            token_losses[rows] = (losses + (total.log() + largest).squeeze(1)).where(factors != 0, 0)
            if not any(needs):
                continue
            # and those into the gradient
            logits.mul_(factors[:, None] / total)
            if label_smoothing:
                logits -= off * factors[:, None]
            logits.scatter_add_(1, targets, -on * factors[:, None])
            if needs_bias:
                bias_grad += logits.sum(0)
            if product is not logits:
                product.copy_(logits)
            if needs_states:
                state_grad[rows] = (product @ words).to(exact)
            if needs_weight:
                _add_product_(weight_grad, product, own)
    loss = (token_losses * token_weights).sum().masked_fill_(missed, torch.nan)
    return loss, state_grad, weight_grad, bias_grad, token_losses


def counted_tokens(token_weights: torch.Tensor, counted: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of the tokens that take part, in order, and whether some with a weight are not among them.

    Args:
        token_weights: (N,), of any type.
        counted: see `vocabulary_loss`.
    """
    nowhere = torch.zeros((), dtype=torch.bool, device=token_weights.device)
    if token_weights.device.type == "xla":  # compiles for one shape, so that there all tokens take part
        return torch.arange(len(token_weights), device=token_weights.device), nowhere
    if counted is None:
        return token_weights.nonzero().squeeze(1), nowhere
    weightless = (token_weights == 0).to(torch.uint8)
    order = weightless.argsort(stable=True)
    missed = token_weights[order[counted:]].any()
    return order[:counted], missed


def _add_product_(total: torch.Tensor, gradient: torch.Tensor, states: torch.Tensor) -> None:
    """total += gradient.T @ states; where types differ, some words at a time, as the product has the size of total."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), states)
        return
    for start in range(0, len(total), WORDS):
        block = slice(start, start + WORDS)
        total[block] += gradient[:, block].t() @ states


register_gradients(
    chunked_vocabulary_loss,
    arguments=3,
    further=lambda states, *others: (states.new_empty(len(states), dtype=accumulator_dtype(others[-1])),),
)
