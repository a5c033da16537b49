"""The names and shapes of open_clip's CustomTextCLIP with a SigLIP image tower of timm, as rules.

Fixed size or NaFlex, as open_clip 3.3 and timm 1.0.31 build these models; neither is imported.
"""

import math

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..errors import CheckpointError
from ..name_map import SAME, Form, Rule, Slot
from ..plan import AnyConfig


SCALAR = Form(lambda a: a.reshape(1), lambda w, _: w.reshape(()))
SEQUENCE = Form(lambda a: a[0], lambda w, _: w[None])  # positions (1, N, D)
GRID = Form(  # positions (1, n, n, D)
    lambda a: a.flatten(0, 2), lambda w, _: w.unflatten(0, (1, math.isqrt(len(w)), math.isqrt(len(w))))
)

BOTH = ("weight", "bias")
TRUNK_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
TEXT_BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
HEAD = {"attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def pairs(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (Slot(f"{theirs}.{kind}"),), SAME) for kind in BOTH]


def block_rules(ours: str, theirs: str, names: dict[str, str], joined: str, out: str) -> list[Rule]:
    """A transformer block; query, key and value are one array there."""
    rules = [rule for own, other in names.items() for rule in pairs(f"{ours}.{own}", f"{theirs}.{other}")]
    rules += pairs(f"{ours}.self_attn.out_proj", f"{theirs}.{out}")
    for part, projection in enumerate(PROJECTIONS):
        for kind in BOTH:
            slot = Slot(f"{theirs}.{joined.format(kind)}", part=part, parts=3)
            rules.append(Rule(f"{ours}.{projection}.{kind}", (slot,), SAME))
    return rules


def head_rules(ours: str, theirs: str) -> list[Rule]:
    """The MAP head; key and value are one array there, all three are one here."""
    rules = [Rule(f"{ours}.probe", (Slot(f"{theirs}.latent"),), SAME)]
    for kind in BOTH:
        slots = (Slot(f"{theirs}.q.{kind}"), *(Slot(f"{theirs}.kv.{kind}", part=part, parts=2) for part in range(2)))
        rules.append(Rule(f"{ours}.attention.in_proj_{kind}", slots, SAME))
    for own, other in HEAD.items():
        rules += pairs(f"{ours}.{own}", f"{theirs}.{other}")
    return rules


def open_clip_rules(config: AnyConfig) -> list[Rule]:
    """Every tensor of a model and open_clip's name for it.

    Raises:
        CheckpointError: open_clip cannot build such a model from timm's SigLIP towers.
    """
    vision, text = towers_of(config)
    rules = [Rule("logit_scale", (Slot("logit_scale"),), SCALAR)]
    if getattr(config, "logit_bias_init", None) is not None:
        rules.append(Rule("logit_bias", (Slot("logit_bias"),), SCALAR))
    patches, positions = ("embeds.proj", "embeds.pos_embed") if vision.naflex else ("patch_embed.proj", "pos_embed")
    rules += pairs("vision_model.embeddings.patch_embedding", f"visual.trunk.{patches}")
    form = GRID if vision.naflex else SEQUENCE
    rules.append(Rule("vision_model.embeddings.position_embedding.weight", (Slot(f"visual.trunk.{positions}"),), form))
    for i in range(vision.num_hidden_layers):
        ours, theirs = f"vision_model.encoder.layers.{i}", f"visual.trunk.blocks.{i}"
        rules += block_rules(ours, theirs, TRUNK_BLOCK, "attn.qkv.{}", "attn.proj")
    rules += pairs("vision_model.post_layernorm", "visual.trunk.norm")
    rules += head_rules("vision_model.head", "visual.trunk.attn_pool")
    rules.append(Rule("text_model.embeddings.token_embedding.weight", (Slot("text.token_embedding.weight"),), SAME))
    rules.append(Rule("text_model.embeddings.position_embedding.weight", (Slot("text.positional_embedding"),), SAME))
    for i in range(text.num_hidden_layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"text.transformer.resblocks.{i}"
        rules += block_rules(ours, theirs, TEXT_BLOCK, "attn.in_proj_{}", "attn.out_proj")
    rules += pairs("text_model.final_layer_norm", "text.ln_final")
    if text.use_head:
        rules += pairs("text_model.head", "text.text_projection")
    return rules


def towers_of(config: AnyConfig) -> tuple[SiglipExtVisionConfig, SiglipExtTextConfig]:
    """The configurations of the towers.

    Raises:
        CheckpointError: open_clip cannot build such a model from timm's SigLIP towers.
    """
    if not isinstance(config, SiglipExtConfig) or not isinstance(config.text_config, SiglipExtTextConfig):
        raise CheckpointError("open_clip form is for models of two SigLIP towers")
    vision, text = config.vision_config, config.text_config
    if (
        not isinstance(vision, SiglipExtVisionConfig)
        or vision.pooling != "map"
        or text.pooling not in ("last", "first")
    ):
        raise CheckpointError(
            "open_clip form is for a MAP-pooled image tower and a text tower that takes the last or first token"
        )
    if vision.projection_size is not None or vision.pre_logits or vision.position_embedding_type != "learned":
        raise CheckpointError("timm's SigLIP towers have learned positions and nothing after the MAP head")
    if text.token_embedding_size is not None:
        raise CheckpointError("open_clip has no bottlenecked token embedding")
    return vision, text
