"""The configuration of open_clip's models with SigLIP towers of timm: read with the tensors, and written.

What shapes do not tell (heads, activations, epsilon, pooling, masks) is what open_clip 3.3 makes of the settings, its
defaults included.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..checkpoint import SOFTMAX, Choices, Preprocessing
from ..containers.arrays import Arrays, count_layers, shape_of
from ..containers.damage import read_mapping
from ..errors import CheckpointError
from ..plan import AnyConfig
from ..released.catalogue import text_tokens, tokenizers, towers
from .names import towers_of
from .towers import (
    EPSILON,
    EXACT,
    TANH,
    TIMM_CONFIG,
    TimmTower,
    Untold,
    activation,
    mlp_ratio,
    name_of,
    tower_of,
    untold,
)


CONFIG = "open_clip_config.json"
HUB_TOKENIZERS = {
    "c4_en": "timm/ViT-B-16-SigLIP",
    "mc4": "timm/ViT-B-16-SigLIP-i18n-256",
    "gemma": "timm/ViT-B-16-SigLIP2",
}
# open_clip's where a configuration does not say
OPEN_CLIP_MEAN, OPEN_CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLEANING = "whitespace"  # of open_clip's three the one that changes least, and its default
TEXT_HEADS, TEXT_EPSILON, POOLINGS = 8, 1e-5, ("last", "first")


@dataclass(frozen=True)
class Settings:
    """What stands beside the weights of an open_clip model.

    Args:
        model: `model_cfg`; empty where there is no `open_clip_config.json`.
        preprocess: `preprocess_cfg`.
        timm: What timm's own `config.json` sets on the image tower.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    timm: dict[str, Any]

    @property
    def text(self) -> dict[str, Any]:
        return self.model.get("text_cfg", {})

    @property
    def vision(self) -> dict[str, Any]:
        return self.model.get("vision_cfg", {})

    @property
    def image_tower(self) -> Untold:
        """What the settings say of the image tower beyond its shapes."""
        name = self.vision.get("timm_model_name", "")
        given = self.timm if ":" in name else {}
        return untold(given.get("architecture", name), given.get("model_args", {}) | self.timm_arguments)

    @property
    def cleaning(self) -> str:
        """What open_clip does to a text before its tokenizer sees it."""
        return (self.text.get("tokenizer_kwargs") or {}).get("clean", CLEANING)

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """Of open_clip after 3.3."""
        return self.vision.get("timm_model_kwargs") or {}


def read_config(folder: Path) -> Settings:
    """What stands beside the weights; empty where there is no `open_clip_config.json`."""
    path = folder / CONFIG
    if not path.is_file():
        return Settings({}, {}, {})
    config = read_mapping(path)
    timm = read_mapping(folder / TIMM_CONFIG) if (folder / TIMM_CONFIG).is_file() else {}
    try:
        model = config["model_cfg"]
        settings = Settings(model, config.get("preprocess_cfg", {}), timm)
        parts = [model, model["vision_cfg"], model["text_cfg"], settings.preprocess, settings.timm_arguments]
        parts.append(timm.get("model_args", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{path} is damaged: one of its parts is no mapping")
    return settings


def chosen(option: str, given: Any, told: Any) -> Any:
    """What the user says where the checkpoint says nothing.

    Raises:
        CheckpointError: it says otherwise.
    """
    if given is not None and told is not None and given != told:
        raise CheckpointError(
            f"{option}={given} has no effect: the configuration beside the weights says {told}; leave it out"
        )
    return told if given is None else given


def heads_of(width: int, given: int | None, option: str) -> int:
    """Attention heads; the shapes do not tell them."""
    known = {sizes["hidden_size"]: sizes["num_attention_heads"] for sizes in towers().values()}
    heads = given or known.get(width)
    if heads is None:
        raise CheckpointError(f"a tower of width {width} does not tell its number of heads: give {option}")
    return heads


def describe_image_tower(arrays: Arrays, settings: Settings, choices: Choices) -> SiglipExtVisionConfig:
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
        size = settings.vision.get("image_size", grid * patch_size)
        if not isinstance(size, int) or size // patch_size != grid:
            raise CheckpointError(f"{CONFIG} says image_size {size}, the positions are a grid of {grid}")
    told = settings.image_tower
    shapes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": count_layers(arrays, "visual.trunk.blocks."),
        "num_attention_heads": heads_of(
            width, chosen("--image_heads", choices.image_heads, told.num_attention_heads), "--image_heads"
        ),
        "intermediate_size": shape_of(arrays, "visual.trunk.blocks.0.mlp.fc1.weight", 2)[0],
        "patch_size": patch_size,
        "image_size": size,
        "num_patches": grid**2 if naflex else None,
    }
    act = chosen("--image_act", choices.image_act, told.hidden_act) or usual_activation(shapes)
    return SiglipExtVisionConfig(**shapes, naflex=naflex, hidden_act=act, layer_norm_eps=EPSILON)


def usual_activation(shapes: dict[str, Any]) -> str:
    """Of an image tower whose name is not known: that of timm's SigLIP tower of these sizes, or timm's usual one."""
    same = (TimmTower(**shapes, hidden_act=act) for act in (TANH, EXACT))
    return next((tower.hidden_act for tower in same if name_of(tower)), EXACT)


def describe_text_tower(arrays: Arrays, settings: Settings, choices: Choices) -> SiglipExtTextConfig:
    vocab_size, width = shape_of(arrays, "text.token_embedding.weight", 2)
    head, stored = "text.text_projection.weight" in arrays, settings.text
    rules = next((known.rules for known in tokenizers().values() if known.vocab_size == vocab_size), "v1")
    if stored:
        pooling, causal = stored.get("pool_type", "argmax"), not stored.get("no_causal_mask", False)
        if causal or pooling not in POOLINGS:
            raise CheckpointError(
                f"{CONFIG}: text_cfg has {'a causal mask' if causal else f'pool_type {pooling!r}'}; SigLIP's text "
                f"towers have none and take the token that is {' or '.join(POOLINGS)}"
            )
        heads, eps = stored.get("heads", TEXT_HEADS), (stored.get("norm_kwargs") or {}).get("eps", TEXT_EPSILON)
        quick = settings.model.get("quick_gelu", False)
        tanh = (stored.get("act_kwargs") or {}).get("approximate") == "tanh"
    else:  # as open_clip's own SigLIP models of this vocabulary
        pooling, heads, eps, quick, tanh = "last", None, EPSILON, False, rules == "v2"
    return SiglipExtTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=count_layers(arrays, "text.transformer.resblocks."),
        num_attention_heads=heads_of(width, chosen("--text_heads", choices.text_heads, heads), "--text_heads"),
        intermediate_size=shape_of(arrays, "text.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        max_position_embeddings=shape_of(arrays, "text.positional_embedding", 2)[0],
        use_head=head,
        projection_size=shape_of(arrays, "text.text_projection.weight", 2)[0] if head else None,
        hidden_act="quick_gelu" if quick else TANH if tanh else EXACT,
        layer_norm_eps=eps,
        pooling=pooling,
        **text_tokens(rules),
    )


def describe_open_clip(arrays: Arrays, settings: Settings, choices: Choices) -> SiglipExtConfig:
    """The configuration of the model that open_clip's tensors hold.

    Args:
        settings: What `read_config` gave.
        choices: Attention heads and activation, where settings do not tell them.

    Raises:
        CheckpointError: Not a SigLIP model of open_clip.
    """
    vision, text = describe_image_tower(arrays, settings, choices), describe_text_tower(arrays, settings, choices)
    loss = {} if "logit_bias" in arrays else SOFTMAX
    return SiglipExtConfig(vision_config=vision, text_config=text, **loss)


def remarks_on(settings: Settings, config: SiglipExtConfig, choices: Choices) -> list[str]:
    """What the user should know: what was assumed, and what the folder cannot do as open_clip does."""
    told, found = settings.image_tower, []
    if not settings.model:
        found.append(
            f"there is no {CONFIG} beside the weights: activations are taken to be those of open_clip's own SigLIP "
            f"models, {config.vision_config.hidden_act} for images and {config.text_config.hidden_act} for texts"
        )
    elif told.hidden_act is None and choices.image_act is None:
        found.append(
            f"what activation timm's {settings.vision.get('timm_model_name')!r} has is not known here: "
            f"{config.vision_config.hidden_act} is written; --image_act names another"
        )
    if told.interpolation not in (None, "bilinear") and config.vision_config.naflex:
        found.append(
            f"open_clip resizes the positions of this tower by {told.interpolation} interpolation, SigLIP 2 and these "
            "classes bilinearly: embeddings of images of other shapes than a square of the grid's size differ"
        )
    mode = settings.preprocess.get("resize_mode", "shortest") if settings.model else "squash"
    if mode != "squash":
        found.append(f"open_clip resizes images by {mode!r}; the image processor written here squashes them")
    return found


def preprocessing_of(settings: Settings) -> Preprocessing:
    """How open_clip prepares images, its defaults included; without settings as SigLIP does."""
    if not settings.model:
        return Preprocessing("bicubic")
    given = {"mean": OPEN_CLIP_MEAN, "std": OPEN_CLIP_STD} | settings.preprocess
    resample = "bilinear" if given.get("interpolation") == "bilinear" else "bicubic"
    return Preprocessing(resample, tuple(given["mean"]), tuple(given["std"]))


def text_settings(text: SiglipExtTextConfig) -> dict[str, Any]:
    """`text_cfg` without the tokenizer.

    Raises:
        CheckpointError: open_clip cannot build this tower; the field is named.
    """
    act = activation(text.hidden_act)
    if act not in (EXACT, TANH, "quick_gelu"):
        raise CheckpointError(
            f"text_config.hidden_act is {text.hidden_act!r}; open_clip has {EXACT}, {TANH} and quick_gelu"
        )
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": mlp_ratio(text.hidden_size, text.intermediate_size),
        "no_causal_mask": True,
        "pool_type": text.pooling,
        **({"proj_bias": True} if text.use_head else {"proj_type": "none"}),
        "norm_kwargs": {"eps": text.layer_norm_eps},
        **({"act_kwargs": {"approximate": "tanh"}} if act == TANH else {}),
    }


def open_clip_config(config: AnyConfig, timm_model: str, preprocess: dict[str, Any]) -> dict[str, Any]:
    """`open_clip_config.json` for a model, still without a tokenizer.

    Args:
        timm_model: timm's name for the image tower, or where its `config.json` is.
        preprocess: `preprocess_cfg`.

    Raises:
        CheckpointError: open_clip cannot build this model.
    """
    vision, text = towers_of(config)
    model = {
        "embed_dim": text.projection_size,
        "init_logit_bias": getattr(config, "logit_bias_init", None),
        "custom_text": True,
        **({"quick_gelu": True} if text.hidden_act == "quick_gelu" else {}),
        "vision_cfg": {
            "image_size": vision.image_size or vision.grid_size * vision.patch_size,
            "timm_model_name": timm_model,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": text_settings(text),
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def timm_name(vision: SiglipExtVisionConfig) -> str | None:
    """timm's name for exactly this image tower; None where it has none."""
    return name_of(tower_of(vision))
