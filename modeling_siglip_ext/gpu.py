"""What a GPU of CUDA does faster by other operations: here it is named, so that all else suits any device."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the operations that are faster there are to be had for the tensor."""
    return tensor.is_cuda


def launching_on(tensor: torch.Tensor) -> AbstractContextManager:
    """Around kernels of Triton, which go to the current device, wherever their tensors are."""
    return torch.cuda.device(tensor.device) if on_gpu(tensor) else nullcontext()
