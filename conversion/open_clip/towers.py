"""timm's SigLIP image towers: what their names stand for, and how any other one is described to timm.

open_clip 3.3 gives timm a name and nothing else, so heads, activation, epsilon, depth and sizes are those of the name.
A name may also be `local-dir:FOLDER` or `hf-hub:USER/NAME`, where timm finds a `config.json` with an architecture and
what differs from it; that is how towers are written that have no name. As in timm 1.0.17 to 1.0.31, which is not
imported; a test compares where it is installed.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from modeling_siglip_ext import SiglipExtVisionConfig

from ..errors import CheckpointError
from ..released.catalogue import towers


TIMM_CONFIG = "config.json"
EPSILON = 1e-6  # of every layer norm; timm takes no other from a configuration
# Activations by transformers' names, and timm's for those that it has.
SAME_ACTIVATION = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "swish": "silu",
}
TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
EXACT, TANH = "gelu", "gelu_pytorch_tanh"
# stem, size in the catalogue, patch, image sizes, activation
FIXED = (
    ("vit_base_patch16_siglip", "B", 16, (224, 256, 384, 512), EXACT),
    ("vit_base_patch32_siglip", "B", 32, (256,), TANH),
    ("vit_large_patch16_siglip", "L", 16, (256, 384), EXACT),
    ("vit_large_patch16_siglip", "L", 16, (512,), TANH),
    ("vit_so400m_patch14_siglip", "So400m", 14, (224, 378, 384), EXACT),
    ("vit_so400m_patch16_siglip", "So400m", 16, (256, 384, 512), TANH),
    ("vit_giantopt_patch16_siglip", "g-opt", 16, (256, 384), TANH),
)
NAFLEX = (("naflexvit_base_patch16_siglip", "B"), ("naflexvit_so400m_patch16_siglip", "So400m"))


@dataclass(frozen=True)
class TimmTower:
    """What timm builds; the fields are those of a `SiglipExtVisionConfig`.

    Args:
        interpolation: Of a NaFlex tower's positions, "bilinear" in SigLIP 2; None where timm's versions differ.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    patch_size: int
    hidden_act: str
    image_size: int | None = None
    num_patches: int | None = None
    num_channels: int = 3
    layer_norm_eps: float = EPSILON
    interpolation: str | None = None

    @property
    def naflex(self) -> bool:
        return self.num_patches is not None


@cache
def named_towers() -> dict[str, TimmTower]:
    """timm's SigLIP towers with a MAP head, by name."""
    found = {
        f"{stem}_{side}": TimmTower(**towers()[size], patch_size=patch, image_size=side, hidden_act=activation)
        for stem, size, patch, sides, activation in FIXED
        for side in sides
    }
    for name, size in NAFLEX:
        found[name] = TimmTower(**towers()[size], patch_size=16, num_patches=256, hidden_act=TANH)
    return found


def activation(name: str) -> str:
    """One name for those that transformers has for one function."""
    return SAME_ACTIVATION.get(name, name)


def tower_of(vision: SiglipExtVisionConfig) -> TimmTower:
    """What timm must build for an image tower."""
    sizes: dict[str, Any] = {
        name: getattr(vision, name) for name in TimmTower.__annotations__ if hasattr(vision, name)
    }
    sizes["hidden_act"] = activation(vision.hidden_act)
    tower = TimmTower(**sizes)
    return replace(tower, interpolation="bilinear") if tower.naflex else tower


def differences(tower: TimmTower, other: TimmTower) -> list[str]:
    """The fields in which two towers differ, with both values."""
    ours, theirs = asdict(tower), asdict(other)
    return [f"{name} {ours[name]} (there {theirs[name]})" for name in ours if ours[name] != theirs[name]]


def name_of(tower: TimmTower) -> str | None:
    """timm's name for exactly this tower; None where it has none."""
    return next((name for name, known in named_towers().items() if known == tower), None)


def check_name(name: str, tower: TimmTower) -> None:
    """Raise CheckpointError where a known name stands for another tower."""
    known = named_towers().get(name.split(".")[0])
    wrong = [] if known is None else differences(tower, known)
    if wrong:
        raise CheckpointError(
            f"--timm_model {name} stands for another tower: {', '.join(wrong)}; leave it out, and what differs is "
            "written for timm"
        )


def mlp_ratio(width: int, intermediate: int) -> float:
    """timm and open_clip multiply by the width and cut the fraction off."""
    whole, rest = divmod(intermediate, width)
    return float(whole) if not rest else math.ceil(intermediate / width * 1e4) / 1e4


def timm_config(tower: TimmTower, preprocess: dict[str, Any]) -> dict[str, Any]:
    """timm's `config.json` for a tower that has no name there: an architecture, and all that is set on it.

    Args:
        tower: See `tower_of`.
        preprocess: open_clip's `preprocess_cfg`.

    Raises:
        CheckpointError: timm cannot build it; the field is named.
    """
    if tower.layer_norm_eps != EPSILON:
        raise CheckpointError(
            f"vision_config.layer_norm_eps is {tower.layer_norm_eps}; timm builds image towers with {EPSILON} only"
        )
    if tower.hidden_act not in TIMM_ACTIVATIONS:
        raise CheckpointError(
            f"vision_config.hidden_act is {tower.hidden_act!r}; timm has {', '.join(TIMM_ACTIVATIONS)}"
        )
    if tower.num_channels != 3:
        raise CheckpointError(f"vision_config.num_channels is {tower.num_channels}; open_clip's images have 3")
    grid = math.isqrt(tower.num_patches or 0)
    side = tower.image_size or grid * tower.patch_size
    arguments: dict[str, Any] = {
        "embed_dim": tower.hidden_size,
        "depth": tower.num_hidden_layers,
        "num_heads": tower.num_attention_heads,
        "mlp_ratio": mlp_ratio(tower.hidden_size, tower.intermediate_size),
        "patch_size": tower.patch_size,
        "act_layer": TIMM_ACTIVATIONS[tower.hidden_act],
    }
    if tower.naflex:
        arguments |= {"pos_embed_grid_size": [grid, grid], "pos_embed_interp_mode": tower.interpolation}
    else:
        arguments["img_size"] = side
    return {
        "architecture": NAFLEX[0][0] if tower.naflex else f"{FIXED[0][0]}_{FIXED[0][3][0]}",
        "num_classes": 0,
        "num_features": tower.hidden_size,
        "global_pool": "map",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": not tower.naflex,
            "interpolation": preprocess["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": preprocess["mean"],
            "std": preprocess["std"],
            "num_classes": 0,
        },
    }


@dataclass(frozen=True)
class Untold:
    """What shapes do not tell of an image tower; None where its name does not either."""

    num_attention_heads: int | None = None
    hidden_act: str | None = None
    interpolation: str | None = None


def untold(name: str, arguments: dict[str, Any]) -> Untold:
    """What a tower's name, and what was set on it, say beyond its shapes.

    Args:
        name: timm's, perhaps with the tag of its weights.
        arguments: What timm's `config.json` and open_clip's `timm_model_kwargs` set.

    Raises:
        CheckpointError: An activation that nothing here knows.
    """
    tower = named_towers().get(name.rsplit("/", 1)[-1].split(".")[0])
    given = arguments.get("act_layer")
    named = {theirs: ours for ours, theirs in TIMM_ACTIVATIONS.items()}
    if given is not None and given not in named:
        raise CheckpointError(f"{name} has the activation {given!r}; known are {', '.join(named)}")
    known = Untold() if tower is None else Untold(tower.num_attention_heads, tower.hidden_act, tower.interpolation)
    return Untold(
        arguments.get("num_heads", known.num_attention_heads),
        known.hidden_act if given is None else named[given],
        arguments.get("pos_embed_interp_mode", known.interpolation),
    )
