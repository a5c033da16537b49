"""Initial weights as in big_vision (`models/vit.py`, `models/proj/image_text/text_transformer.py`), module by module.

By transformers' functions, which leave alone what a checkpoint has filled.
"""

import torch
from torch import nn
from transformers import initialization as init

from .embeddings import SiglipExtVisionEmbeddings
from .layers import SiglipExtAttention, SiglipExtMLP
from .pooling import PoolingAttention, SiglipExtMultiheadAttentionPoolingHead
from .positions import sincos2d


def lecun_normal_(weight: torch.Tensor) -> None:
    """Flax's default for dense layers: a normal of deviation fan_in^-1/2, cut at twice the deviation before cutting.

    transformers' function of this name cuts at ±2 whatever the deviation, which leaves the weights 14 % too large.
    """
    std = weight[0].numel() ** -0.5 / 0.87962566103423978  # the deviation that is fan_in^-1/2 after the cut
    init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def initialise(module: nn.Module) -> None:
    """What a tower is made of; modules that are none of it are left alone."""
    if isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, SiglipExtAttention):
        for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
            init.xavier_uniform_(linear.weight)
            init.zeros_(linear.bias)
    elif isinstance(module, PoolingAttention):
        # query, key and value are three square matrices: the bound must not count them as one of 3·D rows
        if not getattr(module.in_proj_weight, "_is_hf_initialized", False):  # a slice loses that mark
            for matrix in module.in_proj_weight.chunk(3):
                init.xavier_uniform_(matrix)
        init.zeros_(module.in_proj_bias)
        init.xavier_uniform_(module.out_proj.weight)
        init.zeros_(module.out_proj.bias)
    elif isinstance(module, SiglipExtMLP):
        for linear in (module.fc1, module.fc2):
            init.xavier_uniform_(linear.weight)
            init.normal_(linear.bias, std=1e-6)
    elif isinstance(module, SiglipExtMultiheadAttentionPoolingHead):
        bound = (6 / (1 + module.probe.shape[-1])) ** 0.5  # xavier for flax's (1, 1, D): fan in 1, fan out D
        init.uniform_(module.probe, -bound, bound)
    elif isinstance(module, SiglipExtVisionEmbeddings):
        if module.class_embedding is not None:
            init.zeros_(module.class_embedding)
        if hasattr(module, "position_table"):
            init.copy_(module.position_table, sincos2d(module.config.grid_size, module.config.hidden_size))
    elif isinstance(module, nn.Linear | nn.Conv2d):
        lecun_normal_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
