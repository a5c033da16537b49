"""The captioning decoder of CapPa and LocCa: words that attend to the words before them and to an image's tokens.

As google-research/big_vision has it (`models/proj/cappa/cappa.py`): pre-norm blocks of self-attention,
cross-attention and MLP, attention without biases, learned positions, an output layer of its own that starts at zero,
so that the first loss is the logarithm of the vocabulary. No projection stands between the image tower and the keys
and values; they take its tokens in its own width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..initialisation import lecun_normal_
from .configuration import CaptionDecoderConfig
from .unpadded import TokenPlaces


@dataclass
class LayerCache:
    """Keys and values of a block while a text is written, each (rows, heads, tokens, head width)."""

    keys: torch.Tensor
    values: torch.Tensor
    image_keys: torch.Tensor
    image_values: torch.Tensor

    def extended(self, keys: torch.Tensor, values: torch.Tensor, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values up to those at `place`, which are new."""
        end = place + keys.shape[2]
        self.keys[:, :, place:end], self.values[:, :, place:end] = keys, values
        return self.keys[:, :, :end], self.values[:, :, :end]


class DecoderAttention(nn.Module):
    """Attention without biases, of `width` to tokens of `source_width`."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source_width, width, bias=False)
        self.v_proj = nn.Linear(source_width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def keys_values(self, source: torch.Tensor, tokens: TokenPlaces) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, H, L, h) each, of the tokens (N, source width)."""
        return self._by_head(self.k_proj(source), tokens), self._by_head(self.v_proj(source), tokens)

    def forward(
        self,
        states: torch.Tensor,
        tokens: TokenPlaces,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """(N, D) from states (N, D), keys and values (R, H, K, h), and a mask of what is seen, (R, 1, L, K)."""
        query = self._by_head(self.q_proj(states), tokens)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, keys, values, mask, dropout, is_causal=causal)
        found = tokens.take(attended.transpose(1, 2).flatten(2))
        return F.dropout(self.out_proj(found), self.dropout, self.training)

    def _by_head(self, states: torch.Tensor, tokens: TokenPlaces) -> torch.Tensor:
        return tokens.pad(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderMLP(nn.Module):
    def __init__(self, width: int, inner_width: int, bias: bool, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, inner_width, bias=bias)
        self.fc2 = nn.Linear(inner_width, width, bias=bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        activated = F.gelu(self.fc1(states), approximate="tanh")
        return self.fc2(F.dropout(activated, self.dropout, self.training))


class DecoderBlock(nn.Module):
    def __init__(self, config: CaptionDecoderConfig):
        super().__init__()
        width, heads, bias, dropout = config.hidden_size, config.num_attention_heads, config.bias, config.dropout
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-6, bias=bias)
        self.self_attn = DecoderAttention(width, width, heads, dropout)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-6, bias=bias)
        self.cross_attn = DecoderAttention(width, config.encoder_hidden_size, heads, dropout)
        self.layer_norm3 = nn.LayerNorm(width, eps=1e-6, bias=bias)
        self.mlp = DecoderMLP(width, config.intermediate_size, bias, dropout)

    def forward(
        self,
        states: torch.Tensor,
        tokens: TokenPlaces,
        encoded: torch.Tensor,
        mask: torch.Tensor | None,
        encoded_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(N, D), of tokens in B·T rows, T texts to each image. Without a mask a token sees those before it."""
        normed = self.layer_norm1(states)
        keys_values = self.self_attn.keys_values(normed, tokens)
        states = states + self.self_attn(normed, tokens, *keys_values, mask, causal=mask is None)
        # The texts of an image read the same keys and values: they stand in a row, as cross-attention knows no order.
        images, patches, _ = encoded.shape
        keys_values = self.cross_attn.keys_values(encoded.flatten(0, 1), TokenPlaces((images, patches)))
        query = self.layer_norm2(states)
        states = states + self.cross_attn(query, tokens.in_rows(images), *keys_values, encoded_mask)
        return states + self.mlp(self.layer_norm3(states))

    def step(
        self, states: torch.Tensor, cache: LayerCache, place: int, encoded_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, D): the same for the token at `place` alone, after those in the cache."""
        tokens = TokenPlaces((len(states), 1))
        normed = self.layer_norm1(states)
        keys_values = cache.extended(*self.self_attn.keys_values(normed, tokens), place)
        states = states + self.self_attn(normed, tokens, *keys_values)
        query = self.layer_norm2(states)
        states = states + self.cross_attn(query, tokens, cache.image_keys, cache.image_values, encoded_mask)
        return states + self.mlp(self.layer_norm3(states))


class CaptionDecoder(nn.Module):
    """See the module's docstring. `gradient_checkpointing` makes each block compute its forward again in the backward.

    Example:

    ```python
    >>> import torch
    >>> from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
    >>> config = CaptionDecoderConfig(100, 32, 64, 1, 2, encoder_hidden_size=48, max_length=8)
    >>> decoder = CaptionDecoder(config)
    >>> states = decoder(torch.zeros(2, 8, dtype=torch.long), torch.randn(2, 16, 48))
    >>> decoder.output(states).shape
    torch.Size([2, 8, 100])

    ```"""

    _no_split_modules = ["DecoderBlock"]  # transformers' name for what FSDP shards by itself

    def __init__(self, config: CaptionDecoderConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        rows = config.vocab_size + config.mask_token
        self.token_embedding = nn.Embedding(rows, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.layers = nn.ModuleList([DecoderBlock(config) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.output = nn.Linear(config.hidden_size, config.vocab_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """big_vision's initial values."""
        for module in self.modules():
            if isinstance(module, DecoderAttention):
                for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                    lecun_normal_(linear.weight)
            elif isinstance(module, DecoderMLP):
                for linear in (module.fc1, module.fc2):
                    nn.init.xavier_uniform_(linear.weight)
                    if linear.bias is not None:
                        nn.init.normal_(linear.bias, std=1e-6)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.token_embedding.weight)
        nn.init.normal_(self.position_embedding.weight, std=self.config.hidden_size**-0.5)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        encoded: torch.Tensor,
        parallel: torch.Tensor | None = None,
        encoded_mask: torch.Tensor | None = None,
        tokens: TokenPlaces | None = None,
    ) -> torch.Tensor:
        """States after the last norm; `output` makes logits of them, which are too many to make of a whole batch.

        Args:
            input_ids: (B·T, L), the T texts of an image one after another; see `decoder_inputs`.
            encoded: the image tower's tokens after its last norm, (B, N, E), in any precision.
            parallel: rows whose tokens see all others and not only those before them, (B·T,) bool; none by default.
            encoded_mask: True for tokens of the image, False for NaFlex's padding, (B, N).
            tokens: compute these alone, see `without_padding`.

        Returns:
            (B·T, L, D), or (N, D) of the `tokens`.

        Raises:
            ValueError: tokens of another tower, texts that are too long, or not the same number for each image.
        """
        encoded = self._read(encoded)
        rows, length = input_ids.shape
        if length > self.config.max_length:
            raise ValueError(f"{length} tokens, but the decoder has {self.config.max_length} positions (max_length)")
        if rows % len(encoded):
            raise ValueError(f"{rows} texts for {len(encoded)} images: each needs the same number")
        mask = None
        if parallel is not None:
            before = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            mask = before | parallel.bool()[:, None, None, None]
        if encoded_mask is not None:
            encoded_mask = encoded_mask.bool()[:, None, None, :]
        every = tokens or TokenPlaces((rows, length))
        states = self.token_embedding(every.take(input_ids)) + self._positions(every)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                states = checkpoint(layer, states, every, encoded, mask, encoded_mask, use_reentrant=False)
            else:
                states = layer(states, every, encoded, mask, encoded_mask)
        states = self.final_layer_norm(states)
        return states if tokens is not None else every.pad(states)

    def _positions(self, tokens: TokenPlaces) -> torch.Tensor:
        rows, length = tokens.shape
        if tokens.places is None:
            return self.position_embedding.weight[:length].repeat(rows, 1)
        return self.position_embedding(tokens.places % length)

    def _blocks(self) -> Iterable[DecoderBlock]:
        return cast(Iterable[DecoderBlock], self.layers)

    def _read(self, encoded: torch.Tensor) -> torch.Tensor:
        """Tokens in the decoder's precision: transformers loads a tower in the one that it was saved in."""
        width = self.config.encoder_hidden_size
        if encoded.shape[-1] != width:
            raise ValueError(
                f"the image tokens have {encoded.shape[-1]} channels, this decoder reads {width}: it is of "
                "another image tower"
            )
        return encoded.to(self.output.weight.dtype)

    def new_cache(self, encoded: torch.Tensor) -> list[LayerCache]:
        """Room for one text of each image.

        Raises:
            ValueError: tokens of another tower.
        """
        encoded = self._read(encoded)
        caches = []
        for layer in self._blocks():
            images, patches, _ = encoded.shape
            keys, values = layer.cross_attn.keys_values(encoded.flatten(0, 1), TokenPlaces((images, patches)))
            size = (len(encoded), keys.shape[1], self.config.max_length, keys.shape[3])
            caches.append(LayerCache(keys.new_empty(size), keys.new_empty(size), keys, values))
        return caches

    def step(
        self,
        input_ids: torch.Tensor,
        place: int,
        cache: list[LayerCache],
        encoded_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, V) for the token after `input_ids` (B,), which stand at `place` behind those in the cache."""
        if encoded_mask is not None:
            encoded_mask = encoded_mask.bool()[:, None, None, :]
        states = self.token_embedding(input_ids) + self.position_embedding.weight[place]
        for layer, layer_cache in zip(self._blocks(), cache):
            states = layer.step(states, layer_cache, place, encoded_mask)
        return self.output(self.final_layer_norm(states))


def decoder_inputs(
    labels: torch.Tensor, config: CaptionDecoderConfig, parallel: torch.Tensor | None = None
) -> torch.Tensor:
    """What the decoder reads to write `labels`: the labels one place later, or in parallel rows mask tokens alone.

    Args:
        labels: (rows, L), padded.
        parallel: (rows,) bool; none by default.

    Raises:
        ValueError: parallel rows for a decoder without a mask token.
    """
    shifted = F.pad(labels[:, :-1], (1, 0), value=config.pad_token_id)
    if parallel is None:
        return shifted
    if not config.mask_token:
        raise ValueError("parallel prediction needs a decoder with mask_token=True")
    return shifted.masked_fill(parallel.bool()[:, None], config.mask_token_id)
