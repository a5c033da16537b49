"""What a GPU of CUDA does faster by other operations: here it is named, so that all else suits any device."""

import torch


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the operations that are faster there are to be had for the tensor."""
    return tensor.is_cuda
