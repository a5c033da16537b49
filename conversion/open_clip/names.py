"""The checkpoints of open_clip: a CustomTextCLIP with a SigLIP image tower of timm, fixed size or NaFlex.

Names, shapes and configuration both ways, as open_clip 3.3 and timm 1.0.31 build these models; neither is imported.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..big_vision.names import unclaimed
from ..containers.arrays import Arrays
from ..errors import CheckpointError
from ..name_map import SAME, Form, Rule, Slot
from ..plan import Plan, constants_for
from ..released.catalogue import text_tokens, tokenizers, towers
from ..resize import changes_between


WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
SCALAR = Form(lambda a: a.reshape(1), lambda w, _: w.reshape(()))
SEQUENCE = Form(lambda a: a[0], lambda w, _: w[None])  # positions (1, N, D)
GRID = Form(  # positions (1, n, n, D)
    lambda a: a.flatten(0, 2), lambda w, _: w.unflatten(0, (1, math.isqrt(len(w)), math.isqrt(len(w))))
)

BOTH = ("weight", "bias")
TRUNK_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
TEXT_BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# timm's models by width and patch size: their name, and the sizes that exist
TIMM = {
    (768, 16): ("vit_base_patch16_siglip", (224, 256, 384, 512)),
    (768, 32): ("vit_base_patch32_siglip", (256,)),
    (1024, 16): ("vit_large_patch16_siglip", (256, 384, 512)),
    (1152, 14): ("vit_so400m_patch14_siglip", (224, 378, 384)),
    (1152, 16): ("vit_so400m_patch16_siglip", (256, 384, 512)),
    (1536, 16): ("vit_giantopt_patch16_siglip", (256, 384)),
}
TIMM_NAFLEX = {768: "naflexvit_base_patch16_siglip", 1152: "naflexvit_so400m_patch16_siglip"}
HUB_TOKENIZERS = {
    "c4_en": "timm/ViT-B-16-SigLIP",
    "mc4": "timm/ViT-B-16-SigLIP-i18n-256",
    "gemma": "timm/ViT-B-16-SigLIP2",
}


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
    for own, other in {
        "attention.out_proj": "proj",
        "layernorm": "norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        rules += pairs(f"{ours}.{own}", f"{theirs}.{other}")
    return rules


def open_clip_rules(config: SiglipExtConfig) -> list[Rule]:
    """Every tensor of a model and open_clip's name for it.

    Raises:
        CheckpointError: open_clip cannot build such a model from timm's SigLIP towers.
    """
    check_expressible(config)
    vision, text = config.vision_config, config.text_config
    rules = [Rule("logit_scale", (Slot("logit_scale"),), SCALAR)]
    if config.logit_bias_init is not None:
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


def check_expressible(config: SiglipExtConfig) -> None:
    if not isinstance(config, SiglipExtConfig) or not isinstance(config.text_config, SiglipExtTextConfig):
        raise CheckpointError("open_clip form is for models of two SigLIP towers")
    vision, text = config.vision_config, config.text_config
    if not isinstance(vision, SiglipExtVisionConfig) or vision.pooling != "map" or text.pooling != "last":
        raise CheckpointError(
            "open_clip form is for a MAP-pooled image tower and a text tower that takes the last token"
        )
    if vision.projection_size is not None or vision.pre_logits or vision.position_embedding_type != "learned":
        raise CheckpointError("timm's SigLIP towers have learned positions and nothing after the MAP head")
    if text.token_embedding_size is not None:
        raise CheckpointError("open_clip has no bottlenecked token embedding")


def is_open_clip(arrays: Arrays) -> bool:
    return any(name.startswith("visual.trunk.") for name in arrays)


def read_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` beside the weights; empty where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
        model = config["model_cfg"]
        parts = [model, model["vision_cfg"], model["text_cfg"], config.get("preprocess_cfg", {})]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{path} is damaged: one of its parts is no mapping")
    return config


def heads_of(width: int, given: int | None, option: str) -> int:
    """Attention heads; the shapes do not tell them."""
    known = {sizes["hidden_size"]: sizes["num_attention_heads"] for sizes in towers().values()}
    heads = given or known.get(width)
    if heads is None:
        raise CheckpointError(f"a tower of width {width} does not tell its number of heads: give {option}")
    return heads


def shape_of(arrays: Arrays, name: str, sides: int) -> tuple[int, ...]:
    if name not in arrays or len(arrays[name].shape) != sides or 0 in arrays[name].shape:
        found = arrays[name].shape if name in arrays else "nothing"
        raise CheckpointError(
            f"{name} should have {sides} sides that are not empty, there is {found}: no SigLIP model of open_clip"
        )
    return arrays[name].shape


def depth(arrays: Arrays, prefix: str) -> int:
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, arrays) if match), default=-1)


def describe_open_clip(
    arrays: Arrays, stored: dict[str, Any], image_heads: int | None = None, text_heads: int | None = None
) -> SiglipExtConfig:
    """The configuration of the model that open_clip's tensors hold.

    Args:
        stored: What `read_config` gave.
        image_heads, text_heads: Attention heads, for towers of unusual width.

    Raises:
        CheckpointError: Not a SigLIP model of open_clip.
    """
    model = stored.get("model_cfg", {})
    naflex = "visual.trunk.embeds.proj.weight" in arrays
    if naflex:
        width, values = shape_of(arrays, "visual.trunk.embeds.proj.weight", 2)
        _, grid, _, _ = shape_of(arrays, "visual.trunk.embeds.pos_embed", 4)
        sizes = {"naflex": True, "num_patches": grid**2, "patch_size": math.isqrt(values // 3)}
    else:
        width, _, patch_size, _ = shape_of(arrays, "visual.trunk.patch_embed.proj.weight", 4)
        grid = math.isqrt(shape_of(arrays, "visual.trunk.pos_embed", 3)[1])
        # a grid of 27 is 378 or 384 pixels: the name or the settings know
        size = model.get("vision_cfg", {}).get("image_size", grid * patch_size)
        if not isinstance(size, int) or size // patch_size != grid:
            raise CheckpointError(f"{CONFIG} says image_size {size}, the positions are a grid of {grid}")
        sizes = {"image_size": size, "patch_size": patch_size}
    vision = SiglipExtVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth(arrays, "visual.trunk.blocks."),
        num_attention_heads=heads_of(width, image_heads, "--image-heads"),
        intermediate_size=shape_of(arrays, "visual.trunk.blocks.0.mlp.fc1.weight", 2)[0],
        **sizes,
    )
    vocab_size, width = shape_of(arrays, "text.token_embedding.weight", 2)
    head = "text.text_projection.weight" in arrays
    rules = next((known.rules for known in tokenizers().values() if known.vocab_size == vocab_size), "v1")
    text = SiglipExtTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=depth(arrays, "text.transformer.resblocks."),
        num_attention_heads=heads_of(width, text_heads or model.get("text_cfg", {}).get("heads"), "--text-heads"),
        intermediate_size=shape_of(arrays, "text.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        max_position_embeddings=shape_of(arrays, "text.positional_embedding", 2)[0],
        use_head=head,
        projection_size=shape_of(arrays, "text.text_projection.weight", 2)[0] if head else None,
        **text_tokens(rules),
    )
    loss = {} if "logit_bias" in arrays else {"loss_type": "softmax", "logit_bias_init": None}
    return SiglipExtConfig(vision_config=vision, text_config=text, **loss)


def plan_open_clip(arrays: Arrays, source: SiglipExtConfig, config: SiglipExtConfig) -> Plan:
    """The plan for a checkpoint of open_clip; see `plan_big_vision`."""
    table = open_clip_rules(source)
    unknown = unclaimed(arrays, table)
    if unknown:
        raise CheckpointError(f"nothing here understands {', '.join(unknown[:5])}")
    missing = sorted({slot.name for rule in table for slot in rule.slots} - set(arrays))
    if missing:
        raise CheckpointError(f"the checkpoint has no {', '.join(missing[:5])}")
    return Plan(config, table, changes_between(source, config), constants_for(source, config))


def timm_name(vision: SiglipExtVisionConfig) -> str:
    """timm's name for the image tower.

    Raises:
        CheckpointError: timm has no such tower.
    """
    key = (vision.hidden_size, vision.patch_size)
    if vision.naflex and vision.hidden_size in TIMM_NAFLEX and vision.patch_size == 16:
        return TIMM_NAFLEX[vision.hidden_size]
    name, sizes = TIMM.get(key, ("", ()))
    if vision.naflex or vision.image_size not in sizes:
        size = "NaFlex" if vision.naflex else f"{vision.image_size} px"
        raise CheckpointError(
            f"timm has no SigLIP tower of width {key[0]}, patch {key[1]}, {size}; name another with --timm-model"
        )
    return f"{name}_{vision.image_size}"


def mlp_ratio(text: SiglipExtTextConfig) -> float:
    """open_clip multiplies by the width and cuts the fraction off."""
    exact = text.intermediate_size / text.hidden_size
    return exact if exact.is_integer() else math.ceil(exact * 1e4) / 1e4


def open_clip_config(config: SiglipExtConfig, timm_model: str | None = None, interpolation: str = "bilinear") -> dict:
    """`open_clip_config.json` for a model.

    Args:
        timm_model: timm's name for the image tower; None finds it.
        interpolation: Of the image preprocessing.
    """
    vision, text = config.vision_config, config.text_config
    ratio = mlp_ratio(text)
    tokenizer = next((name for name, known in tokenizers().items() if known.vocab_size == text.vocab_size), None)
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "hf_tokenizer_name": HUB_TOKENIZERS.get(tokenizer),
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": ratio,
        "no_causal_mask": True,
        "pool_type": "last",
        **({"proj_bias": True} if text.use_head else {"proj_type": "none"}),
        "norm_kwargs": {"eps": text.layer_norm_eps},
        "act_kwargs": {"approximate": "tanh"},
    }
    if text_cfg["hf_tokenizer_name"] is None:
        del text_cfg["hf_tokenizer_name"], text_cfg["tokenizer_kwargs"]
    vision_cfg = {
        "image_size": vision.image_size or vision.grid_size * vision.patch_size,
        "timm_model_name": timm_model or timm_name(vision),
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    if vision.naflex:
        vision_cfg["image_seq_len"] = vision.num_patches
    return {
        "model_cfg": {
            "embed_dim": vision.hidden_size,
            "init_logit_bias": config.logit_bias_init,
            "custom_text": True,
            "vision_cfg": vision_cfg,
            "text_cfg": text_cfg,
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": interpolation,
            "resize_mode": "squash",
        },
    }
