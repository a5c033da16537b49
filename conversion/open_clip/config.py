"""The configuration of open_clip's models with SigLIP towers of timm: from tensors, and as `open_clip_config.json`."""

import math
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..checkpoint import SOFTMAX, Choices
from ..containers.arrays import Arrays, count_layers, shape_of
from ..containers.damage import read_mapping
from ..errors import CheckpointError
from ..plan import AnyConfig
from ..released.catalogue import text_tokens, tokenizers, towers
from .names import towers_of


CONFIG = "open_clip_config.json"
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


def read_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` beside the weights; empty where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    config = read_mapping(path)
    try:
        model = config["model_cfg"]
        parts = [model, model["vision_cfg"], model["text_cfg"], config.get("preprocess_cfg", {})]
    except (KeyError, TypeError) as error:
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


def describe_open_clip(arrays: Arrays, stored: dict[str, Any], choices: Choices) -> SiglipExtConfig:
    """The configuration of the model that open_clip's tensors hold.

    Args:
        stored: What `read_config` gave.
        choices: Attention heads, for towers of unusual width.

    Raises:
        CheckpointError: Not a SigLIP model of open_clip.
    """
    model = stored.get("model_cfg", {})
    naflex = "visual.trunk.embeds.proj.weight" in arrays
    size = None
    if naflex:
        width, values = shape_of(arrays, "visual.trunk.embeds.proj.weight", 2)
        _, grid, _, _ = shape_of(arrays, "visual.trunk.embeds.pos_embed", 4)
        patch_size = math.isqrt(values // 3)
    else:
        width, _, patch_size, _ = shape_of(arrays, "visual.trunk.patch_embed.proj.weight", 4)
        grid = math.isqrt(shape_of(arrays, "visual.trunk.pos_embed", 3)[1])
        # a grid of 27 is 378 or 384 pixels: the name or the settings know
        size = model.get("vision_cfg", {}).get("image_size", grid * patch_size)
        if not isinstance(size, int) or size // patch_size != grid:
            raise CheckpointError(f"{CONFIG} says image_size {size}, the positions are a grid of {grid}")
    vision = SiglipExtVisionConfig(
        hidden_size=width,
        num_hidden_layers=count_layers(arrays, "visual.trunk.blocks."),
        num_attention_heads=heads_of(width, choices.image_heads, "--image_heads"),
        intermediate_size=shape_of(arrays, "visual.trunk.blocks.0.mlp.fc1.weight", 2)[0],
        patch_size=patch_size,
        naflex=naflex,
        image_size=size,
        num_patches=grid**2 if naflex else None,
    )
    vocab_size, width = shape_of(arrays, "text.token_embedding.weight", 2)
    head = "text.text_projection.weight" in arrays
    rules = next((known.rules for known in tokenizers().values() if known.vocab_size == vocab_size), "v1")
    text = SiglipExtTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_layers(arrays, "text.transformer.resblocks."),
        num_attention_heads=heads_of(
            width, choices.text_heads or model.get("text_cfg", {}).get("heads"), "--text_heads"
        ),
        intermediate_size=shape_of(arrays, "text.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        max_position_embeddings=shape_of(arrays, "text.positional_embedding", 2)[0],
        use_head=head,
        projection_size=shape_of(arrays, "text.text_projection.weight", 2)[0] if head else None,
        **text_tokens(rules),
    )
    loss = {} if "logit_bias" in arrays else SOFTMAX
    return SiglipExtConfig(vision_config=vision, text_config=text, **loss)


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
            f"timm has no SigLIP tower of width {key[0]}, patch {key[1]}, {size}; name another with --timm_model"
        )
    return f"{name}_{vision.image_size}"


def mlp_ratio(text: SiglipExtTextConfig) -> float:
    """open_clip multiplies by the width and cuts the fraction off."""
    whole, rest = divmod(text.intermediate_size, text.hidden_size)
    return float(whole) if not rest else math.ceil(text.intermediate_size / text.hidden_size * 1e4) / 1e4


def open_clip_config(
    config: AnyConfig, timm_model: str | None = None, interpolation: str = "bilinear"
) -> dict[str, Any]:
    """`open_clip_config.json` for a model.

    Args:
        timm_model: timm's name for the image tower; None finds it.
        interpolation: Of the image preprocessing.
    """
    vision, text = towers_of(config)
    tokenizer = next((name for name, known in tokenizers().items() if known.vocab_size == text.vocab_size), None)
    repo = HUB_TOKENIZERS.get(tokenizer or "")
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        **({} if repo is None else {"hf_tokenizer_name": repo, "tokenizer_kwargs": {"clean": "canonicalize"}}),
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": mlp_ratio(text),
        "no_causal_mask": True,
        "pool_type": "last",
        **({"proj_bias": True} if text.use_head else {"proj_type": "none"}),
        "norm_kwargs": {"eps": text.layer_norm_eps},
        "act_kwargs": {"approximate": "tanh"},
    }
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
            "init_logit_bias": getattr(config, "logit_bias_init", None),
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
