"""The names and shapes of google-research/big_vision's checkpoints, as rules.

The table depends on the model's configuration and on which towers keep their layers in stacked arrays. Facts:
`models/vit.py`, `models/proj/image_text/` there; the configuration is found in `config.py`.
"""

import math

from transformers import BertConfig

from modeling_siglip_ext import SiglipExtTextConfig, SiglipExtVisionConfig

from ..errors import CheckpointError
from ..name_map import SAME, Form, Rule, Slot
from ..resize import AnyConfig, vision_of


# flax kernels are input-first
DENSE = Form(lambda a: a.t(), lambda w, _: w.t())
CONV = Form(lambda a: a.permute(3, 2, 0, 1), lambda w, _: w.permute(2, 3, 1, 0))
HEADS_IN = Form(lambda a: a.flatten(1).t(), lambda w, heads: w.T.unflatten(1, (heads, -1)))
HEADS_BIAS = Form(lambda a: a.flatten(), lambda w, heads: w.unflatten(0, (heads, -1)))
HEADS_OUT = Form(lambda a: a.flatten(0, 1).t(), lambda w, heads: w.T.unflatten(0, (heads, -1)))
SEQUENCE = Form(lambda a: a[0], lambda w, _: w[None])  # positions (1, N, D)
GRID = Form(lambda a: a.flatten(0, 1), lambda w, _: w.unflatten(0, (math.isqrt(len(w)), -1)))  # positions (n, n, D)
TOKEN = Form(lambda a: a[0, 0], lambda w, _: w[None, None])  # the class token (1, 1, D)

NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))
LINEAR = (("weight", "kernel", DENSE), ("bias", "bias", SAME))
HEADS = (("weight", "kernel", HEADS_IN), ("bias", "bias", HEADS_BIAS))
OUT = (("weight", "kernel", HEADS_OUT), ("bias", "bias", SAME))


def entries(torch_name: str, jax_name: str, parts: tuple) -> tuple:
    return tuple((f"{torch_name}.{ours}", (f"{jax_name}/{theirs}",), form) for ours, theirs, form in parts)


ATTENTION = "MultiHeadDotProductAttention_0"
MLP = (*entries("mlp.fc1", "MlpBlock_0/Dense_0", LINEAR), *entries("mlp.fc2", "MlpBlock_0/Dense_1", LINEAR))
BLOCK = (
    *entries("layer_norm1", "LayerNorm_0", NORM),
    *entries("self_attn.q_proj", f"{ATTENTION}/query", HEADS),
    *entries("self_attn.k_proj", f"{ATTENTION}/key", HEADS),
    *entries("self_attn.v_proj", f"{ATTENTION}/value", HEADS),
    *entries("self_attn.out_proj", f"{ATTENTION}/out", OUT),
    *entries("layer_norm2", "LayerNorm_1", NORM),
    *MLP,
)
MAP_HEAD = (
    ("probe", ("probe",), SAME),
    ("attention.in_proj_weight", tuple(f"{ATTENTION}/{p}/kernel" for p in ("query", "key", "value")), HEADS_IN),
    ("attention.in_proj_bias", tuple(f"{ATTENTION}/{p}/bias" for p in ("query", "key", "value")), HEADS_BIAS),
    *entries("attention.out_proj", f"{ATTENTION}/out", OUT),
    *entries("layernorm", "LayerNorm_0", NORM),
    *MLP,
)
BERT_EMBEDDINGS = (
    ("word_embeddings.weight", ("embedder/embedders_token_ids/embedding",), SAME),
    ("position_embeddings.weight", ("embedder/embedders_position_ids/embedding",), SAME),
    ("token_type_embeddings.weight", ("embedder/embedders_segment_ids/embedding",), SAME),
    *entries("LayerNorm", "layer_norm", NORM),
)
BERT_BLOCK = (
    *entries("attention.self.query", "attention_block/attention_layer/query", LINEAR),
    *entries("attention.self.key", "attention_block/attention_layer/key", LINEAR),
    *entries("attention.self.value", "attention_block/attention_layer/value", LINEAR),
    *entries("attention.output.dense", "attention_block/dense_layer", LINEAR),
    *entries("attention.output.LayerNorm", "attention_block/layer_norm", NORM),
    *entries("intermediate.dense", "mlp_block/mlp/dense_layer", LINEAR),
    *entries("output.dense", "mlp_block/dense_layer", LINEAR),
    *entries("output.LayerNorm", "mlp_block/layer_norm", NORM),
)


def expand(table: tuple, torch_prefix: str, jax_prefix: str, heads: int, layer: int | None = None) -> list[Rule]:
    return [
        Rule(torch_prefix + name, tuple(Slot(jax_prefix + source, layer) for source in sources), form, heads)
        for name, sources, form in table
    ]


def block_rules(torch_prefix: str, jax_prefix: str, depth: int, stacked: bool, heads: int) -> list[Rule]:
    rules = []
    for i in range(depth):
        source = f"{jax_prefix}encoderblock/" if stacked else f"{jax_prefix}encoderblock_{i}/"
        rules += expand(BLOCK, f"{torch_prefix}encoder.layers.{i}.", source, heads, i if stacked else None)
    return rules


def image_rules(config: SiglipExtVisionConfig, stacked: bool) -> list[Rule]:
    heads = config.num_attention_heads
    table = [
        ("embeddings.patch_embedding.weight", ("embedding/kernel",), DENSE if config.naflex else CONV),
        ("embeddings.patch_embedding.bias", ("embedding/bias",), SAME),
        *entries("post_layernorm", "Transformer/encoder_norm", NORM),
    ]
    if config.position_embedding_type == "learned":
        form = GRID if config.naflex else SEQUENCE
        table.append(("embeddings.position_embedding.weight", ("pos_embedding",), form))
    if config.pooling == "cls":
        table.append(("embeddings.class_embedding", ("cls",), TOKEN))
    if config.pre_logits:
        table += entries("pre_logits", "pre_logits", LINEAR)
    if config.projection_size is not None:
        table += entries("projection", "head", LINEAR)
    rules = expand(tuple(table), "vision_model.", "img/", heads)
    if config.pooling == "map":
        rules += expand(MAP_HEAD, "vision_model.head.", "img/MAPHead_0/", heads)
    return rules + block_rules("vision_model.", "img/Transformer/", config.num_hidden_layers, stacked, heads)


def text_rules(config: SiglipExtTextConfig, stacked: bool) -> list[Rule]:
    heads = config.num_attention_heads
    table = [
        ("embeddings.token_embedding.weight", ("Embed_0/embedding",), SAME),
        ("embeddings.position_embedding.weight", ("pos_embedding",), SEQUENCE),
        *entries("final_layer_norm", "Encoder_0/encoder_norm", NORM),
    ]
    if config.token_embedding_size is not None:
        raise ValueError("big_vision has no layout for a bottlenecked token embedding (token_embedding_size)")
    if config.use_head:
        table += entries("head", "head", LINEAR)
    rules = expand(tuple(table), "text_model.", "txt/", heads)
    if config.pooling == "map":
        rules += expand(MAP_HEAD, "text_model.pooling.", "txt/MAPHead_0/", heads)
    return rules + block_rules("text_model.", "txt/Encoder_0/", config.num_hidden_layers, stacked, heads)


def bert_rules(config: BertConfig, projection: bool) -> list[Rule]:
    heads = config.num_attention_heads
    rules = expand(BERT_EMBEDDINGS, "text_model.embeddings.", "txt/BertEncoder_0/", heads)
    for i in range(config.num_hidden_layers):
        source = f"txt/BertEncoder_0/encoder_block/layer_sequence/layers_{i}/"
        rules += expand(BERT_BLOCK, f"text_model.encoder.layer.{i}.", source, heads)
    if projection:
        rules += expand(entries("projection", "head", LINEAR), "text_adapter.", "txt/", heads)
    return rules


def rules(config: AnyConfig, stacked: frozenset[str] = frozenset()) -> list[Rule]:
    """Every tensor of a model and the arrays it is made of.

    Args:
        config: The dual model's configuration, or an image tower's alone.
        stacked: Which towers, "img" and "txt", keep their layers in stacked arrays.
    """
    image_part = image_rules(vision_of(config), "img" in stacked)
    if isinstance(config, SiglipExtVisionConfig):
        return image_part
    table = [("logit_scale", ("t",), SAME)]
    if config.logit_bias_init is not None:
        table.append(("logit_bias", ("b",), SAME))
    text = config.text_config
    if isinstance(text, SiglipExtTextConfig):
        text_part = text_rules(text, "txt" in stacked)
    elif not isinstance(text, BertConfig):
        raise CheckpointError(f"big_vision has no layout for a {getattr(text, 'model_type', text)!r} text tower")
    else:
        text_part = bert_rules(text, config.text_projection_size is not None)
    return expand(tuple(table), "", "", 1) + image_part + text_part
