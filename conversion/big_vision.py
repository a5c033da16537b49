"""The checkpoints of google-research/big_vision: their names and shapes, as rules and as a configuration.

`rules` is the table: it depends on the model's configuration and on whether a tower's layers are stacked, and is read
in both directions. `describe` finds the configuration from names and shapes. `modern` brings the layouts that
big_vision's own loader still accepts into the present one. Facts: `models/vit.py`, `models/proj/image_text/` there.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import torch
from transformers import BertConfig
from transformers.configuration_utils import PreTrainedConfig

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from .containers import CheckpointError, LazyArray
from .name_map import Form, Rule, Sizes, Slot


# flax kernels are input-first
SAME = Form(lambda a: a, lambda w, _: w)
DENSE = Form(lambda a: a.T, lambda w, _: w.T)
CONV = Form(lambda a: a.permute(3, 2, 0, 1), lambda w, _: w.permute(2, 3, 1, 0))
HEADS_IN = Form(lambda a: a.flatten(1).T, lambda w, sizes: w.T.unflatten(1, (sizes.heads, -1)))
HEADS_BIAS = Form(lambda a: a.flatten(), lambda w, sizes: w.unflatten(0, (sizes.heads, -1)))
HEADS_OUT = Form(lambda a: a.flatten(0, 1).T, lambda w, sizes: w.T.unflatten(0, (sizes.heads, -1)))
SEQUENCE = Form(lambda a: a[0], lambda w, _: w[None])  # positions (1, N, D)
GRID = Form(lambda a: a.flatten(0, 1), lambda w, _: w.unflatten(0, (math.isqrt(len(w)), -1)))  # positions (n, n, D)
TOKEN = Form(lambda a: a[0, 0], lambda w, _: w[None, None])  # the class token (1, 1, D)

NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))
LINEAR = (("weight", "kernel", DENSE), ("bias", "bias", SAME))


def entries(torch_name: str, jax_name: str, parts: tuple) -> tuple:
    return tuple((f"{torch_name}.{ours}", (f"{jax_name}/{theirs}",), form) for ours, theirs, form in parts)


def attention_entries(jax_name: str) -> tuple:
    projections = [
        (f"self_attn.{ours}.{kind}", (f"{jax_name}/{theirs}/{array}",), form)
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
        for kind, array, form in (("weight", "kernel", HEADS_IN), ("bias", "bias", HEADS_BIAS))
    ]
    out = (
        ("self_attn.out_proj.weight", (f"{jax_name}/out/kernel",), HEADS_OUT),
        ("self_attn.out_proj.bias", (f"{jax_name}/out/bias",), SAME),
    )
    return (*projections, *out)


ATTENTION = "MultiHeadDotProductAttention_0"
BLOCK = (
    *entries("layer_norm1", "LayerNorm_0", NORM),
    *attention_entries(ATTENTION),
    *entries("layer_norm2", "LayerNorm_1", NORM),
    *entries("mlp.fc1", "MlpBlock_0/Dense_0", LINEAR),
    *entries("mlp.fc2", "MlpBlock_0/Dense_1", LINEAR),
)
MAP_HEAD = (
    ("probe", ("probe",), SAME),
    ("attention.in_proj_weight", tuple(f"{ATTENTION}/{p}/kernel" for p in ("query", "key", "value")), HEADS_IN),
    ("attention.in_proj_bias", tuple(f"{ATTENTION}/{p}/bias" for p in ("query", "key", "value")), HEADS_BIAS),
    ("attention.out_proj.weight", (f"{ATTENTION}/out/kernel",), HEADS_OUT),
    ("attention.out_proj.bias", (f"{ATTENTION}/out/bias",), SAME),
    *entries("layernorm", "LayerNorm_0", NORM),
    *entries("mlp.fc1", "MlpBlock_0/Dense_0", LINEAR),
    *entries("mlp.fc2", "MlpBlock_0/Dense_1", LINEAR),
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


def expand(table: tuple, torch_prefix: str, jax_prefix: str, sizes: Sizes, layer: int | None = None) -> list[Rule]:
    return [
        Rule(torch_prefix + name, tuple(Slot(jax_prefix + source, layer) for source in sources), form, sizes)
        for name, sources, form in table
    ]


def block_rules(torch_prefix: str, jax_prefix: str, depth: int, stacked: bool, sizes: Sizes) -> list[Rule]:
    rules = []
    for i in range(depth):
        source = f"{jax_prefix}encoderblock/" if stacked else f"{jax_prefix}encoderblock_{i}/"
        rules += expand(BLOCK, f"{torch_prefix}encoder.layers.{i}.", source, sizes, i if stacked else None)
    return rules


def image_rules(config: SiglipExtVisionConfig, stacked: bool) -> list[Rule]:
    sizes = Sizes(heads=config.num_attention_heads)
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
    rules = expand(tuple(table), "vision_model.", "img/", sizes)
    if config.pooling == "map":
        rules += expand(MAP_HEAD, "vision_model.head.", "img/MAPHead_0/", sizes)
    return rules + block_rules("vision_model.", "img/Transformer/", config.num_hidden_layers, stacked, sizes)


def text_rules(config: SiglipExtTextConfig, stacked: bool) -> list[Rule]:
    sizes = Sizes(heads=config.num_attention_heads)
    table = [
        ("embeddings.token_embedding.weight", ("Embed_0/embedding",), SAME),
        ("embeddings.position_embedding.weight", ("pos_embedding",), SEQUENCE),
        *entries("final_layer_norm", "Encoder_0/encoder_norm", NORM),
    ]
    if config.token_embedding_size is not None:
        raise ValueError("big_vision has no layout for a bottlenecked token embedding (token_embedding_size)")
    if config.use_head:
        table += entries("head", "head", LINEAR)
    rules = expand(tuple(table), "text_model.", "txt/", sizes)
    if config.pooling == "map":
        rules += expand(MAP_HEAD, "text_model.pooling.", "txt/MAPHead_0/", sizes)
    return rules + block_rules("text_model.", "txt/Encoder_0/", config.num_hidden_layers, stacked, sizes)


def bert_rules(config: PreTrainedConfig, projection: bool) -> list[Rule]:
    sizes = Sizes(heads=config.num_attention_heads)
    rules = expand(BERT_EMBEDDINGS, "text_model.embeddings.", "txt/BertEncoder_0/", sizes)
    for i in range(config.num_hidden_layers):
        source = f"txt/BertEncoder_0/encoder_block/layer_sequence/layers_{i}/"
        rules += expand(BERT_BLOCK, f"text_model.encoder.layer.{i}.", source, sizes)
    if projection:
        rules += expand(entries("projection", "head", LINEAR), "text_adapter.", "txt/", sizes)
    return rules


def rules(config: SiglipExtConfig | SiglipExtVisionConfig, stacked: frozenset[str] = frozenset()) -> list[Rule]:
    """Every tensor of a model and the arrays it is made of.

    Args:
        config: The dual model's configuration, or an image tower's alone.
        stacked: Which towers, "img" and "txt", keep their layers in stacked arrays.
    """
    if isinstance(config, SiglipExtVisionConfig):
        return image_rules(config, "img" in stacked)
    table = [("logit_scale", ("t",), SAME)]
    if config.logit_bias_init is not None:
        table.append(("logit_bias", ("b",), SAME))
    text = config.text_config
    if isinstance(text, SiglipExtTextConfig):
        text_part = text_rules(text, "txt" in stacked)
    else:
        text_part = bert_rules(text, config.text_projection_size is not None)
    return expand(tuple(table), "", "", Sizes()) + image_rules(config.vision_config, "img" in stacked) + text_part


def parameters(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The model's parameters out of a container: beside an optimiser's state, inside one, or bare."""
    for prefix in ("params/", "opt/target/"):
        found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(arrays)


LEGACY_NAMES = (
    (re.compile(r"(encoderblock(?:_\d+)?)/MultiHeadDotProductAttention_1/"), rf"\1/{ATTENTION}/"),
    (re.compile(r"(encoderblock(?:_\d+)?)/LayerNorm_2/"), r"\1/LayerNorm_1/"),
    (re.compile(r"(encoderblock(?:_\d+)?)/MlpBlock_3/"), r"\1/MlpBlock_0/"),
    (re.compile(r"^img/Transformer/(?:posembed_input/)?pos_embedding$"), "img/pos_embedding"),
    (re.compile(r"^img/(probe|MultiHeadDotProductAttention_0|MlpBlock_0|LayerNorm_0)(?=/|$)"), r"img/MAPHead_0/\1"),
)


def is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def modern(params: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The parameters under today's names, with the sums that big_vision's own loader takes."""
    renamed = {}
    for name, array in params.items():
        for pattern, replacement in LEGACY_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = array
    positions, token = renamed.get("img/pos_embedding"), renamed.get("img/cls")
    if positions is not None and token is not None and not is_square(positions.shape[1]):
        # k² + 1 rows: the first belongs to the class token
        shape = (1, positions.shape[1] - 1, positions.shape[2])
        renamed["img/cls"] = LazyArray(token.shape, lambda: token.load() + positions.load()[:, :1])
        renamed["img/pos_embedding"] = LazyArray(shape, lambda: positions.load()[:, 1:])
    inner, outer = renamed.pop("txt/Encoder_0/pos_embedding", None), renamed.get("txt/pos_embedding")
    if inner is not None:
        both = inner if outer is None else LazyArray(inner.shape, lambda: outer.load() + inner.load())
        renamed["txt/pos_embedding"] = both
    return renamed


def stacked_towers(params: Mapping[str, LazyArray]) -> frozenset[str]:
    """The towers, "img" and "txt", whose layers are stacked along a leading axis."""
    return frozenset(name[:3] for name in params if re.match(r"(img|txt)/.*encoderblock/", name))


@dataclasses.dataclass(frozen=True)
class Choices:
    """What neither names nor shapes of a checkpoint tell; None leaves the usual value."""

    image_size: int | None = None
    image_pooling: str | None = None
    text_pooling: str | None = None
    text_heads: int | None = None


def shape_of(params: Mapping[str, LazyArray], name: str) -> tuple[int, ...]:
    if name not in params:
        raise CheckpointError(f"the checkpoint has no {name}: not a big_vision image-text model of a known layout")
    return params[name].shape


def transformer_sizes(params: Mapping[str, LazyArray], prefix: str) -> dict[str, int]:
    """Depth, widths and heads of a tower, from its first block."""
    stacked = f"{prefix}encoderblock/{ATTENTION}/query/kernel" in params
    block = f"{prefix}encoderblock/" if stacked else f"{prefix}encoderblock_0/"
    width, heads, _ = shape_of(params, f"{block}{ATTENTION}/query/kernel")[-3:]
    if stacked:
        depth = shape_of(params, f"{block}{ATTENTION}/query/kernel")[0]
    else:
        pattern = re.compile(rf"{re.escape(prefix)}encoderblock_(\d+)/")
        depth = 1 + max(int(match[1]) for match in map(pattern.match, params) if match)
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "intermediate_size": shape_of(params, f"{block}MlpBlock_0/Dense_0/kernel")[-1],
    }


def describe_image(params: Mapping[str, LazyArray], choices: Choices) -> SiglipExtVisionConfig:
    kernel = shape_of(params, "img/embedding/kernel")
    fields = transformer_sizes(params, "img/Transformer/")
    naflex = len(kernel) == 2
    patch_size = math.isqrt(kernel[0] // 3) if naflex else kernel[0]
    positions = params.get("img/pos_embedding")
    if positions is None and choices.image_size is None:
        raise CheckpointError(
            "the image tower has fixed sincos2d positions, which do not tell the image size: give it"
        )
    if naflex:
        fields["num_patches"] = math.prod(positions.shape[:2])
    else:
        grid = None if positions is None else math.isqrt(positions.shape[1])
        fields["image_size"] = choices.image_size or grid * patch_size
    if "img/MAPHead_0/probe" in params:
        pooling = "map"
    else:
        pooling = "cls" if "img/cls" in params else "mean"
    if choices.image_pooling is not None:
        pooling = choices.image_pooling
    elif any(name.startswith("llm/") for name in params):  # PaliGemma reads all tokens
        pooling = "none"
    return SiglipExtVisionConfig(
        **fields,
        patch_size=patch_size,
        naflex=naflex,
        pooling=pooling,
        pre_logits="img/pre_logits/kernel" in params,
        projection_size=params["img/head/kernel"].shape[-1] if "img/head/kernel" in params else None,
        position_embedding_type="sincos2d" if positions is None else "learned",
    )


def describe_text(params: Mapping[str, LazyArray], choices: Choices) -> SiglipExtTextConfig:
    fields = transformer_sizes(params, "txt/Encoder_0/")
    head = params.get("txt/head/kernel")
    return SiglipExtTextConfig(
        **fields,
        vocab_size=shape_of(params, "txt/Embed_0/embedding")[0],
        max_position_embeddings=shape_of(params, "txt/pos_embedding")[1],
        pooling=choices.text_pooling or ("map" if "txt/MAPHead_0/probe" in params else "last"),
        use_head=head is not None,
        projection_size=None if head is None else head.shape[-1],
    )


def describe_bert(params: Mapping[str, LazyArray], choices: Choices) -> BertConfig:
    """The BERT of LiT (flaxformer). Its query kernels are flat, so the number of heads comes from the width."""
    embedder = "txt/BertEncoder_0/embedder/embedders_{}_ids/embedding"
    block = "txt/BertEncoder_0/encoder_block/layer_sequence/layers_"
    vocab_size, width = shape_of(params, embedder.format("token"))
    heads = choices.text_heads or {768: 12, 1024: 16}.get(width)
    if heads is None:
        raise CheckpointError(f"a BERT of width {width} does not tell its number of heads: give it")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=1 + max(int(n.removeprefix(block).split("/")[0]) for n in params if n.startswith(block)),
        intermediate_size=shape_of(params, f"{block}0/mlp_block/mlp/dense_layer/kernel")[-1],
        max_position_embeddings=shape_of(params, embedder.format("position"))[0],
        type_vocab_size=shape_of(params, embedder.format("segment"))[0],
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )


def describe(
    params: Mapping[str, LazyArray], choices: Choices | None = None
) -> SiglipExtConfig | SiglipExtVisionConfig:
    """The configuration of the model that a checkpoint holds; an image tower's where there is no text tower.

    Raises:
        CheckpointError: The names or shapes are not those of a big_vision image-text model.
    """
    choices = Choices() if choices is None else choices
    vision = describe_image(params, choices)
    if not any(name.startswith("txt/") for name in params):
        return vision
    fields = {}
    if any(name.startswith("txt/BertEncoder_0/") for name in params):
        fields["text_config"] = describe_bert(params, choices)
        fields["text_pooling"] = choices.text_pooling or "first"
        head = params.get("txt/head/kernel")
        fields["text_projection_size"] = None if head is None else head.shape[-1]
    else:
        fields["text_config"] = describe_text(params, choices)
    if "b" not in params:
        fields |= {"loss_type": "softmax", "logit_bias_init": None}
    return SiglipExtConfig(vision_config=vision, **fields)


def unclaimed(params: Mapping[str, LazyArray], table: list[Rule]) -> list[str]:
    """The arrays that no rule takes."""
    claimed = {slot.name for rule in table for slot in rule.slots}
    return sorted(set(params) - claimed)


def check_complete(params: Mapping[str, LazyArray], table: list[Rule]) -> None:
    """Every array that a rule takes is there, and a stack holds exactly the tower's layers."""
    layers: dict[str, int] = {}
    for rule in table:
        for slot in rule.slots:
            shape_of(params, slot.name)
            if slot.layer is not None:
                layers[slot.name] = slot.layer + 1
    for name, depth in layers.items():
        if params[name].shape[0] != depth:
            raise CheckpointError(f"{name} stacks {params[name].shape[0]} layers, other arrays {depth}")


def identity_head(config: SiglipExtTextConfig) -> dict[str, torch.Tensor]:
    """The head that changes nothing, for a target format that demands one (a checkpoint without `txt/head`)."""
    width = config.hidden_size
    return {"text_model.head.weight": torch.eye(width), "text_model.head.bias": torch.zeros(width)}
