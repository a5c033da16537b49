"""Batches and expected results that the workers of this folder share. Expected values come from torch on the CPU."""

import itertools
import math
import re

import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss


PAIRS, WIDTH = 96, 16
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
NAMES = ("value", "images", "texts", "scale", "bias")


def batch(pairs: int = PAIRS, width: int = WIDTH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    images, noise = (torch.randn(pairs, width, generator=generator, dtype=torch.float64) for _ in range(2))
    images, texts = F.normalize(images), F.normalize(images + 2 * noise)
    return [images.float(), texts.float(), torch.tensor([10.0]).log(), torch.tensor([-10.0])]


def value_and_gradients(loss, arguments: list[torch.Tensor], **options) -> list[torch.Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    value = loss(*arguments, **options)
    value.backward()
    return [value.detach(), *(argument.grad for argument in arguments)]


def cases():
    """Loss, whether pairs are told by ids, and what one torch process on the CPU says, in float64."""
    for name, with_ids in itertools.product(LOSSES, (False, True)):
        ids = torch.arange(PAIRS) % 7 if with_ids else None
        whole = [argument.double() for argument in batch()]
        expected = value_and_gradients(LOSSES[name], whole, implementation="eager", pair_ids=ids)
        yield name, ids, expected


def errors(got: list[torch.Tensor], expected: list[torch.Tensor]) -> dict[str, float]:
    """Relative errors, and absolute ones of sums of terms of order 1, which may cancel."""
    return {
        name: float((one.cpu().double() - other).norm() / other.norm().clamp(min=0 if other.ndim > 1 else 1))
        for name, one, other in zip(NAMES, got, expected)
    }


def largest_array(hlo: str) -> int:
    """Elements of the largest array in a graph."""
    shapes = re.findall(r"\b(?:f32|f64|bf16|s32|s64|pred)\[([\d,]+)\]", hlo)
    return max(math.prod(int(size) for size in shape.split(",")) for shape in shapes)


def instructions(hlo: str) -> int:
    return len(re.findall(r"^\s*(?:ROOT )?\S+ = ", hlo, flags=re.MULTILINE))
