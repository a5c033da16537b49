"""What the losses demand of their arguments, checked from shapes and dtypes alone: the device is never waited for."""

from __future__ import annotations

import torch

from .communicators import Communicator
from .distribution import communicator
from .tiles import triton_problem


IMPLEMENTATIONS = ("auto", "eager", "tiled", "triton")
DISTRIBUTIONS = ("auto", "none", "gather", "ring")
LOSSES = ("sigmoid", "softmax", "eager sigmoid", "eager softmax")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(group: str, image_embeds: torch.Tensor, *arguments) -> None:
    """Raise a ValueError naming the argument and the shapes, dtypes or devices that do not fit.

    The other ranks of the group, which wait in `agree`, are told first, so that they raise as well.
    """
    problem = _problem(image_embeds, *arguments)
    if problem:
        communicator(group).exchange([0] * 7, image_embeds.device)
        raise ValueError(problem)


def agree(
    comm: Communicator,
    loss: str,
    image_embeds: torch.Tensor,
    pair_ids: torch.Tensor | None,
    text_gradients: bool,
    distribution: str,
) -> list[int]:
    """The rows of every rank. One exchange of a few numbers, after which all ranks work or all ranks raise."""
    call = {
        "the loss": LOSSES.index(loss),
        "the width of image_embeds": image_embeds.shape[1],
        "the dtype of image_embeds": FLOATS.index(image_embeds.dtype),
        "having pair_ids": int(pair_ids is not None),
        "text_embeds needing a gradient": int(text_gradients),
        "distribution": DISTRIBUTIONS.index(distribution),
    }
    calls = comm.exchange([image_embeds.shape[0], *call.values()], image_embeds.device)
    refused = [rank for rank, (rows, *_) in enumerate(calls) if rows == 0]
    if refused:
        raise ValueError(f"the arguments were refused on rank {refused}: see the error there")
    for column, name in enumerate(call, start=1):
        values = [numbers[column] for numbers in calls]
        if min(values) != max(values):
            raise ValueError(f"{name} differs between ranks: {values}")
    return [numbers[0] for numbers in calls]


def _problem(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    pair_ids: torch.Tensor | None,
    distribution: str,
    implementation: str,
) -> str | None:
    shapes = f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)}"
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        return f"image_embeds and text_embeds must both be (B, D), one text an image, got {shapes}"
    if image_embeds.numel() == 0:
        return f"image_embeds and text_embeds must not be empty, got {shapes}"
    if image_embeds.dtype != text_embeds.dtype or image_embeds.dtype not in FLOATS:
        return (
            "image_embeds and text_embeds must have one floating dtype, "
            f"got {image_embeds.dtype} and {text_embeds.dtype}"
        )
    scalars = {"logit_scale": logit_scale, "logit_bias": logit_bias}
    for name, tensor in ({"text_embeds": text_embeds, "pair_ids": pair_ids} | scalars).items():
        if tensor is not None and tensor.device != image_embeds.device:
            return f"{name} is on {tensor.device}, image_embeds on {image_embeds.device}"
    for name, tensor in scalars.items():
        if tensor is not None and (tensor.numel() != 1 or not tensor.is_floating_point()):
            return f"{name} must be one floating number, got shape {tuple(tensor.shape)}, {tensor.dtype}"
    if pair_ids is not None and (pair_ids.shape != image_embeds.shape[:1] or pair_ids.dtype not in INTEGERS):
        return (
            f"pair_ids must be integers of shape ({image_embeds.shape[0]},), one a row of image_embeds "
            f"{tuple(image_embeds.shape)}, got {pair_ids.dtype} of shape {tuple(pair_ids.shape)}"
        )
    if distribution not in DISTRIBUTIONS:
        return f"distribution must be one of {DISTRIBUTIONS}, got {distribution!r}"
    if implementation not in IMPLEMENTATIONS:
        return f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}"
    if implementation == "triton" and (missing := triton_problem(image_embeds)):
        return f"implementation='triton' needs {missing}: take 'tiled' or 'auto'"
    if (distribution, implementation) == ("ring", "eager"):
        return "distribution='ring' goes block by block, which implementation='eager' cannot: take 'tiled' or 'auto'"
    return None
