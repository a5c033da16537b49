"""A step for many parameters at once: a GPU is given a few kernels over lists of tensors instead of some for each."""

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager

import torch


# Of the parameters that take a step together; scratch arrays are as large, 256 MB in float32.
ELEMENTS = 2**26


def buckets(
    parameters: Iterable[torch.Tensor], kind: Callable[[torch.Tensor], Hashable]
) -> Iterator[list[torch.Tensor]]:
    """Parameters of one kind, as many as have `ELEMENTS` together, or one that has more."""
    kinds: dict[Hashable, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        kinds[kind(parameter)].append(parameter)
    for alike in kinds.values():
        bucket: list[torch.Tensor] = []
        elements = 0
        for parameter in alike:
            if bucket and elements + parameter.numel() > ELEMENTS:
                yield bucket
                bucket, elements = [], 0
            bucket.append(parameter)
            elements += parameter.numel()
        yield bucket


def gradients(parameters: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Those of parameters that have one, in another precision."""
    return in_dtype([parameter.grad for parameter in parameters if parameter.grad is not None], dtype)


def in_dtype(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies in another precision; those that have it already stay."""
    return [tensor.to(dtype) for tensor in tensors]


def decayed_moments_(moments: list[torch.Tensor], momentum: float, dtype: torch.dtype) -> list[torch.Tensor]:
    """momentum × each moment, which is overwritten; the result is new, of another precision.

    Args:
        momentum: a number that bfloat16 can hold.
    """
    torch._foreach_mul_(moments, momentum)
    decayed = [torch.empty_like(moment, dtype=dtype) for moment in moments]
    torch._foreach_copy_(decayed, moments)
    return decayed


def add_square_(squares: list[torch.Tensor], grads: list[torch.Tensor], beta2: float) -> None:
    """beta2 × each second moment + (1 − beta2) × the gradient's square."""
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)


@contextmanager
def decayed_weights(
    parameters: list[torch.Tensor], lr: float, weight_decay: float, dtype: torch.dtype
) -> Generator[list[torch.Tensor]]:
    """The parameters after weight decay, to be changed in place: themselves, or in a precision that they are kept in
    after it, so that decay and step are rounded once."""
    weights = in_dtype(parameters, dtype)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    yield weights
    if weights[0] is not parameters[0]:
        torch._foreach_copy_(parameters, weights)
