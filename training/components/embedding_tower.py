"""The two halves of a locked image tower: what computes its embeddings once, and what stands in for it afterwards."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_siglip_ext import SiglipExtConfig
from modeling_siglip_ext.modeling_siglip_ext import build_adapter, embedding_size, load_tower, source_config


class EmbeddingTower(nn.Module):
    """Takes the place of an image tower: its "pixel values" (B, D) are the embeddings already."""

    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values[:, None], pooler_output=pixel_values)


class ImageEncoder(nn.Module):
    """An image tower without a text tower, for `encoding.stream_images`; its embeddings are not normalized.

    Args:
        name: folder or Hub name of a SigLIP model, an image tower of ours, or any image model of transformers.
        pooling: how a model from elsewhere gives its vector; see `SiglipExtConfig`.
    """

    def __init__(self, name: str, pooling: str | None = None):
        super().__init__()
        config = SiglipExtConfig(vision_config=source_config(name, "vision"), vision_pooling=pooling)
        self.width = embedding_size(config, "vision")
        self.tower = load_tower(config, "vision", name)
        self.adapter = build_adapter(config, "vision", self.tower)
        self.eval().requires_grad_(False)

    def get_image_features(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        """`pooler_output` (B, D); towers of ours take the masks and shapes of NaFlex too."""
        return self.tower(pixel_values, **inputs) if self.adapter is None else self.adapter(self.tower, pixel_values)

    def forward(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to embeddings (B, D)."""
        pooled = self.get_image_features(pixel_values, **inputs).pooler_output
        assert pooled is not None
        return pooled
