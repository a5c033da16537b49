"""Numbers that change from step to step, such that torch_xla needs no new graph for them."""

import torch


def graph_input(number: float, like: torch.Tensor) -> float | torch.Tensor:
    """The number itself, or on XLA devices a scalar tensor of `like`'s dtype.

    There a plain number is an input of the graph, too, but shares it with any other number of the same value: when the
    step counter comes by the batch size, say, the graph has an input less, and all is compiled again.
    """
    if like.device.type != "xla":
        return number
    return torch.tensor([number], dtype=like.dtype).to(like.device)[0]
