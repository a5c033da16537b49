"""From token states to one vector (B, D): each pooling a small module, chosen once when a tower is built.

Token states are a batch (B, N, D), with a mask (B, N) that has 1 for valid tokens where some are padding, or packed
images (1, T, D), with their packing in the place of the mask.
"""

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

from .layers import SiglipExtMLP, attend
from .packing import Packing


logger = logging.get_logger(__name__)


class PoolingAttention(nn.Module):
    """One query attends to all tokens.

    The parameters carry the names and shapes of `nn.MultiheadAttention`, as stock checkpoints do. That module itself
    knows no attention backends and blocks quantisation and offloading.
    """

    is_causal = False

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * config.hidden_size))
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, probe: torch.Tensor, hidden_states: torch.Tensor, attention_mask: torch.Tensor | Packing | None
    ) -> torch.Tensor:
        batch, tokens, width = hidden_states.shape
        heads = (self.num_heads, width // self.num_heads)
        # the probe is the same for all images: project it once and let the batch share it
        query = nn.functional.linear(probe, self.in_proj_weight[:width], self.in_proj_bias[:width])
        query = query.view(1, 1, *heads).transpose(1, 2)
        if isinstance(attention_mask, Packing):
            query = query.expand(-1, -1, attention_mask.batch_shape[0], -1)
        else:
            query = query.expand(batch, -1, -1, -1)
        key_value = nn.functional.linear(hidden_states, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = key_value.view(batch, tokens, 2, *heads).permute(2, 0, 3, 1, 4)
        output, _ = attend(self, self.config, query, key, value, attention_mask)
        # stock checkpoints run in `nn.MultiheadAttention`, which does not call this layer: an adapter on it, which
        # PEFT's "all-linear" puts there, has no effect there and so has none here
        projection = getattr(self.out_proj, "base_layer", None)
        if projection is None:
            projection = self.out_proj
        elif not torch.compiler.is_compiling():
            logger.warning_once("an adapter on out_proj of a MAP head does nothing, as in the stock class: exclude it")
        return projection(output.reshape(-1, 1, width))


class SiglipExtMultiheadAttentionPoolingHead(nn.Module):
    """Attention pooling with a learned probe, the "MAP head" (big_vision, `models/vit.py`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PoolingAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipExtMLP(config)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | Packing | None = None) -> torch.Tensor:
        attention_mask = mask
        if isinstance(mask, torch.Tensor):
            attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=self.probe.expand(hidden_states.shape[0], -1, -1),
                attention_mask=mask,
                encoder_hidden_states=hidden_states,
            )
        pooled = self.attention(self.probe, hidden_states, attention_mask)
        pooled = (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
        return mask.images_in_batch_order(pooled) if isinstance(mask, Packing) else pooled


class ReductionPooling(nn.Module):
    """A pooling without parameters. Of packed images it reduces each group, which has one length and no padding."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | Packing | None = None) -> torch.Tensor:
        if isinstance(mask, Packing):
            pooled = [self.reduce(group) for group in mask.split(hidden_states)]
            return mask.images_in_batch_order(torch.cat(pooled))
        return self.reduce(hidden_states, mask)

    def reduce(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, D) from tokens (B, N, D), without those that a mask hides; each pooling has its own."""
        raise NotImplementedError


class MeanPooling(ReductionPooling):
    def reduce(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is None:
            return hidden_states.mean(dim=1)
        weights = mask.to(hidden_states.dtype).unsqueeze(-1)
        return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1)


class MaxPooling(ReductionPooling):
    def reduce(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is not None:
            lowest = torch.finfo(hidden_states.dtype).min
            hidden_states = hidden_states.masked_fill(~mask.bool().unsqueeze(-1), lowest)
        return hidden_states.amax(dim=1)


class TokenPooling(ReductionPooling):
    """One position's state: 0 for the first token (or the class token), -1 for the last one that the mask allows."""

    def __init__(self, position: int):
        super().__init__()
        self.position = position

    def reduce(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is None or self.position == 0:
            return hidden_states[:, self.position]
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask.long() * positions).argmax(dim=1)
        batch = torch.arange(last.shape[0], device=last.device)  # len(last) would be a constant in a graph
        return hidden_states[batch, last]


POOLINGS = {
    "map": SiglipExtMultiheadAttentionPoolingHead,
    "mean": lambda config: MeanPooling(),
    "max": lambda config: MaxPooling(),
    "cls": lambda config: TokenPooling(0),
    "first": lambda config: TokenPooling(0),
    "last": lambda config: TokenPooling(-1),
}


def build_pooling(config: PreTrainedConfig) -> nn.Module | None:
    """The pooling that `config.pooling` names; None for "none"."""
    return None if config.pooling == "none" else POOLINGS[config.pooling](config)
