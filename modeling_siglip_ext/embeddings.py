"""What the towers begin with: tokens or patches, each with its position.

The names of the modules and the shapes of their parameters are those of the stock SigLIP classes.
"""

import torch
from torch import nn

from .configuration_siglip_ext import SiglipExtTextConfig, SiglipExtVisionConfig
from .gpu import on_gpu
from .packing import Packing
from .positions import interpolate_positions, resize_positions, resize_positions_in_a_row, sincos2d


def all_rows(embedding: nn.Embedding, count: int, device: torch.device) -> torch.Tensor:
    """The whole table, by calling the module: offloading and adapters hook into the call."""
    return embedding(torch.arange(count, device=device))


class SiglipExtTextEmbeddings(nn.Module):
    """Token and position embeddings; with mSigLIP's bottleneck the token table is narrow and projected up."""

    def __init__(self, config: SiglipExtTextConfig):
        super().__init__()
        narrow, width = config.token_embedding_size, config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, narrow or width)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, width)
        self.token_projection = None if narrow is None else nn.Linear(narrow, width, bias=False)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        tokens = self.token_embedding(input_ids)
        if self.token_projection is not None:
            tokens = self.token_projection(tokens)
        if position_ids is None:
            return tokens + all_rows(self.position_embedding, input_ids.shape[1], input_ids.device)
        return tokens + self.position_embedding(position_ids)


class SiglipExtPatchEmbedding(nn.Conv2d):
    """The convolution over patches that do not overlap, on a GPU as the one matrix product that it is.

    cuDNN takes ten times as long for it, a tenth of a tower's inference.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, H // patch, W // patch), on a GPU laid out token by token."""
        if not on_gpu(input):
            return super().forward(input)
        high, wide = self.kernel_size
        height, width = input.shape[-2] // high, input.shape[-1] // wide
        pixels = input[..., : height * high, : width * wide]
        patches = pixels.unflatten(3, (width, wide)).unflatten(2, (height, high)).permute(0, 2, 4, 1, 3, 5)
        tokens = nn.functional.linear(patches.flatten(3), self.weight.flatten(1), self.bias)
        return tokens.permute(0, 3, 1, 2)


class SiglipExtVisionEmbeddings(nn.Module):
    """Patches of one fixed image size, with learned or sine-cosine positions and, if pooled so, a class token."""

    def __init__(self, config: SiglipExtVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = SiglipExtPatchEmbedding(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        if config.position_embedding_type == "learned":
            self.position_embedding = nn.Embedding(config.grid_size**2, config.hidden_size)
        else:
            table = sincos2d(config.grid_size, config.hidden_size)
            self.position_table = nn.Buffer(table, persistent=False)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.pooling == "cls" else None

    def positions(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """Positions of a grid of patches, (height·width, D)."""
        grid = self.config.grid_size
        if self.config.position_embedding_type == "sincos2d":
            return self.position_table
        table = all_rows(self.position_embedding, grid**2, device)
        return table if (height, width) == (grid, grid) else interpolate_positions(table, height, width)

    def forward(
        self,
        pixel_values: torch.Tensor,
        spatial_shapes: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        size = self.config.image_size
        if not interpolate_pos_encoding and pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[-2:])}, the model takes ({size}, {size}): resize with "
                "its image processor, or pass interpolate_pos_encoding=True"
            )
        if interpolate_pos_encoding and self.config.position_embedding_type != "learned":
            raise ValueError("interpolate_pos_encoding=True needs learned positions, this tower has sincos2d")
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        # laid out token by token: otherwise the strides of the convolution's output stay with the residual stream, and
        # every layer norm copies it
        tokens = patches.flatten(2).transpose(1, 2).contiguous()
        tokens = tokens + self.positions(*patches.shape[-2:], patches.device)
        if self.class_embedding is not None:  # it has no position (big_vision adds it after the positions)
            tokens = torch.cat([self.class_embedding.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        return tokens


class SiglipExtNaflexEmbeddings(nn.Module):
    """Patches of images of any shape: (B, L, p·p·3), padded to L, each with the positions of its own grid.

    With a packing the tokens of all images come in one row, (1, T, D), else padded, (B, L, D).
    """

    def __init__(self, config: SiglipExtVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.grid_size**2, config.hidden_size)

    def forward(
        self,
        pixel_values: torch.Tensor,
        spatial_shapes: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        if packing is not None:
            pixel_values = packing.pack(pixel_values)
        tokens = self.patch_embedding(pixel_values.to(self.position_embedding.weight.dtype))
        table = all_rows(self.position_embedding, self.config.grid_size**2, tokens.device)
        if packing is not None:
            return tokens + resize_positions_in_a_row(table, packing.grids)
        return tokens + resize_positions(table, spatial_shapes, pixel_values.shape[1])
