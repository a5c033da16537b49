"""Embeddings of a dual-tower model, batch by batch, ready for the metrics: normalised, float32, on the CPU."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode without gradients, and give every submodule its own mode back afterwards.

    A frozen tower kept in evaluation mode while the rest trains stays so, which a plain `model.train()` would undo.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def embed_images(model: nn.Module, batches: Iterable[torch.Tensor | Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Image embeddings.

    Args:
        model: its `get_image_features` gives a `pooler_output` (`SiglipExtModel`, stock `SiglipModel`, ...).
        batches: `pixel_values` (B, C, H, W), or mappings with the keyword arguments of `get_image_features` (NaFlex:
            pixel_values, pixel_attention_mask, spatial_shapes).

    Returns:
        (N, D) float32 on the CPU, each row of unit length.

    Raises:
        ValueError: no batches.
    """
    return _embed(model, model.get_image_features, "pixel_values", batches)


def embed_texts(model: nn.Module, batches: Iterable[torch.Tensor | Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Text embeddings; like `embed_images`, with `input_ids` (B, L) or the arguments of `get_text_features`."""
    return _embed(model, model.get_text_features, "input_ids", batches)


def _embed(model: nn.Module, features, argument: str, batches) -> torch.Tensor:
    device = next(model.parameters()).device
    found = []
    with evaluating(model):
        for batch in batches:
            inputs = batch if isinstance(batch, Mapping) else {argument: batch}
            inputs = {name: value.to(device) for name, value in inputs.items()}
            pooled = features(**inputs).pooler_output
            found.append(F.normalize(pooled.float(), dim=-1).cpu())
    if not found:
        raise ValueError("nothing to embed: there were no batches")
    return torch.cat(found)
