"""Embeddings of a dual-tower model, batch by batch, ready for the metrics: normalised, float32, on the CPU."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from modeling_siglip_ext.encoding import embed, evaluating


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
    return _embed(model, "image", "pixel_values", batches)


def embed_texts(model: nn.Module, batches: Iterable[torch.Tensor | Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Text embeddings; like `embed_images`, with `input_ids` (B, L) or the arguments of `get_text_features`."""
    return _embed(model, "text", "input_ids", batches)


def _embed(model: nn.Module, kind: str, argument: str, batches: Iterable) -> torch.Tensor:
    with evaluating(model):
        found = [embed(model, kind, batch if isinstance(batch, Mapping) else {argument: batch}) for batch in batches]
    if not found:
        raise ValueError("nothing to embed: there were no batches")
    return torch.cat(found)
