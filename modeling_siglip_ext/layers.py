"""The pre-norm transformer blocks that both towers share; parameter names are those of the stock SigLIP classes."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .gpu import on_gpu
from .packing import Packing


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: query (B, H, Q, h), key, value (B, H, K, h), additive mask; gives (B, Q, H, h), weights."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(weights, dim=-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module,
    config: PreTrainedConfig,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Packing | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Bidirectional attention by the backend that `config._attn_implementation` names, masked or of packed images.

    The default is torch's (sdpa). Towers of fixed resolution and texts have no mask, so that it is free to take flash
    attention on a GPU; heads of So400m are 72 wide, which those kernels pad to 96.
    """
    backend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention)
    dropout = config.attention_dropout if module.training else 0.0
    kwargs |= {"is_causal": False, "scaling": query.shape[-1] ** -0.5, "dropout": dropout}
    if isinstance(attention_mask, Packing):
        name = config._attn_implementation or "eager"
        if name == "flex_attention":  # what it is for are masks, of which a packing has no need
            backend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return attention_mask.attend(backend, module, query, key, value, flash="flash" in name, **kwargs)
    return backend(module, query, key, value, attention_mask, **kwargs)


class SiglipExtAttention(nn.Module):
    """Multi-head self-attention over a batch (B, N, D), or over packed images (1, T, D) with their packing as mask."""

    is_causal = False  # some backends read it from the module

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | Packing | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (rows.view(heads).transpose(1, 2) for rows in self.projected(hidden_states))
        output, weights = attend(self, self.config, query, key, value, attention_mask, **kwargs)
        return self.out_proj(output.reshape(hidden_states.shape).contiguous()), weights

    def projected(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, (..., D) each; on a GPU by one product where they may, reading the input once."""
        layers = self.q_proj, self.k_proj, self.v_proj
        if on_gpu(hidden_states) and all(may_be_joined(layer, hidden_states) for layer in layers):
            weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            return nn.functional.linear(hidden_states, weight, bias).chunk(3, dim=-1)
        return tuple(layer(hidden_states) for layer in layers)


class SiglipExtMLP(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.is_gelu = config.hidden_act == "gelu_pytorch_tanh"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.is_gelu and on_gpu(hidden_states) and may_be_joined(self.fc1, hidden_states):
            rows = hidden_states.flatten(0, -2)
            rows = torch._addmm_activation(self.fc1.bias, rows, self.fc1.weight.t(), use_gelu=True)
            return self.fc2(rows.unflatten(0, hidden_states.shape[:-1]))
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


def may_be_joined(linear: nn.Linear, inputs: torch.Tensor) -> bool:
    """Whether a GPU may compute the layer with what stands beside it: for inference, in half precision.

    The product takes the activation along, which saves a pass over the widest of all activations; queries, keys and
    values are one product. A layer that an adapter, a quantiser or an offloading hook has changed is called as it is;
    so is one in training, where the gradient cache's two passes must round alike, and one under autocast, which knows
    nothing of a product with an activation.
    """
    if torch.is_grad_enabled() or linear.training or torch.is_autocast_enabled(inputs.device.type):
        return False
    weight = linear.weight  # quantisers put a subclass of tensors there
    half = weight.dtype.itemsize == 2 and weight.dtype == inputs.dtype
    hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear)
    return half and type(linear) is nn.Linear and type(weight) in (torch.Tensor, nn.Parameter) and not hooked


class SiglipExtEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipExtAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipExtMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | Packing | None = None, **kwargs
    ) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class SiglipExtEncoder(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layers = nn.ModuleList([SiglipExtEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | Packing | None = None, **kwargs
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states
