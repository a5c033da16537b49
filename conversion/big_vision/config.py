"""Finds the configuration of the model that a big_vision checkpoint holds, from names and shapes."""

import math

from transformers import BertConfig

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..checkpoint import BERT, SOFTMAX, Choices, TowerSizes
from ..containers.arrays import Arrays, count_layers, shape_of
from ..errors import CheckpointError
from ..plan import AnyConfig
from .names import ATTENTION


def head_width(params: Arrays, name: str) -> int | None:
    """The width of a linear head's output; None where there is no head."""
    return shape_of(params, name, 2)[1] if name in params else None


def transformer_sizes(params: Arrays, prefix: str) -> TowerSizes:
    """Depth, widths and heads of a tower, from its first block."""
    stacked = f"{prefix}encoderblock/{ATTENTION}/query/kernel" in params
    block = f"{prefix}encoderblock/" if stacked else f"{prefix}encoderblock_0/"
    *layers, width, heads, _ = shape_of(params, f"{block}{ATTENTION}/query/kernel", 4 if stacked else 3)
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers[0] if stacked else count_layers(params, f"{prefix}encoderblock_"),
        "intermediate_size": shape_of(params, f"{block}MlpBlock_0/Dense_0/kernel", 3 if stacked else 2)[-1],
    }


def describe_image(params: Arrays, choices: Choices) -> SiglipExtVisionConfig:
    kernel = shape_of(params, "img/embedding/kernel")
    if len(kernel) not in (2, 4):
        raise CheckpointError(f"img/embedding/kernel has the shape {kernel}, and should have 4 sides, or 2 for NaFlex")
    naflex = len(kernel) == 2
    patch_size = math.isqrt(kernel[0] // 3) if naflex else kernel[0]
    positions = shape_of(params, "img/pos_embedding", 3) if "img/pos_embedding" in params else None
    if positions is None and choices.image_size is None:
        raise CheckpointError(
            "the image tower has fixed sincos2d positions, which do not tell the image size: give --image_size"
        )
    if naflex and positions is None:
        raise CheckpointError("the checkpoint has no img/pos_embedding, which a NaFlex tower needs")
    size = None if naflex else choices.image_size
    if positions is not None and not naflex:
        grid = math.isqrt(positions[1])
        # a grid of 27 patches of 14 pixels is 378 or 384 pixels; another grid is none that was asked for
        size = size if size is not None and size // max(1, patch_size) == grid else grid * patch_size
    if "img/MAPHead_0/probe" in params:
        pooling = "map"
    else:
        pooling = "cls" if "img/cls" in params else "mean"
    if choices.image_pooling is not None:
        pooling = choices.image_pooling
    elif any(name.startswith("llm/") for name in params):  # PaliGemma reads all tokens
        pooling = "none"
    return SiglipExtVisionConfig(
        **transformer_sizes(params, "img/Transformer/"),
        patch_size=patch_size,
        naflex=naflex,
        image_size=size,
        num_patches=None if positions is None or not naflex else math.prod(positions[:2]),
        pooling=pooling,
        pre_logits="img/pre_logits/kernel" in params,
        projection_size=head_width(params, "img/head/kernel"),
        position_embedding_type="sincos2d" if positions is None else "learned",
    )


def describe_text(params: Arrays, choices: Choices) -> SiglipExtTextConfig:
    head = head_width(params, "txt/head/kernel")
    return SiglipExtTextConfig(
        **transformer_sizes(params, "txt/Encoder_0/"),
        vocab_size=shape_of(params, "txt/Embed_0/embedding", 2)[0],
        max_position_embeddings=shape_of(params, "txt/pos_embedding", 3)[1],
        pooling=choices.text_pooling or ("map" if "txt/MAPHead_0/probe" in params else "last"),
        use_head=head is not None,
        projection_size=head,
    )


def describe_bert(params: Arrays, choices: Choices) -> BertConfig:
    """The BERT of LiT (flaxformer). Its query kernels are flat, so the number of heads comes from the width."""
    embedder = "txt/BertEncoder_0/embedder/embedders_{}_ids/embedding"
    block = "txt/BertEncoder_0/encoder_block/layer_sequence/layers_"
    vocab_size, width = shape_of(params, embedder.format("token"), 2)
    heads = choices.text_heads or {768: 12, 1024: 16}.get(width)
    if heads is None:
        raise CheckpointError(f"a BERT of width {width} does not tell its number of heads: give --text_heads")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=count_layers(params, block),
        intermediate_size=shape_of(params, f"{block}0/mlp_block/mlp/dense_layer/kernel", 2)[1],
        max_position_embeddings=shape_of(params, embedder.format("position"), 2)[0],
        type_vocab_size=shape_of(params, embedder.format("segment"), 2)[0],
        **BERT,
    )


def describe(params: Arrays, choices: Choices) -> AnyConfig:
    """The configuration of the model that a checkpoint holds; an image tower's where there is no text tower.

    Raises:
        CheckpointError: The names or shapes are not those of a big_vision image-text model.
    """
    vision = describe_image(params, choices)
    if not any(name.startswith("txt/") for name in params):
        return vision
    loss = {} if "b" in params else SOFTMAX
    if not any(name.startswith("txt/BertEncoder_0/") for name in params):
        return SiglipExtConfig(vision_config=vision, text_config=describe_text(params, choices), **loss)
    return SiglipExtConfig(
        vision_config=vision,
        text_config=describe_bert(params, choices),
        text_pooling=choices.text_pooling or "first",
        text_projection_size=head_width(params, "txt/head/kernel"),
        **loss,
    )
