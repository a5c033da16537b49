"""What happens to every array of a checkpoint: where it goes, how it changes, what is left out. No data are read."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import torch

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig
from modeling_siglip_ext.loading import some
from modeling_siglip_ext.naflex_form import fields_of_form

from .containers.arrays import Arrays
from .errors import CheckpointError
from .name_map import Rule, to_torch
from .resize import AnyConfig, Change, vision_of


@dataclass(frozen=True)
class Plan:
    """How a checkpoint becomes a model.

    Args:
        config: The model's configuration.
        rules: Which arrays make up which tensors.
        changes: Resizing, by tensor.
        constants: Tensors that have no array.
        left_out: Arrays that the model has no place for, by what they are.
    """

    config: AnyConfig
    rules: list[Rule]
    changes: dict[str, Change] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class NewSizes:
    """The sizes that a user wants changed; None leaves the checkpoint's.

    Raises:
        CheckpointError: A size below 1.
    """

    image_size: int | None = None
    patch_size: int | None = None
    text_length: int | None = None
    naflex: bool | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "text_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CheckpointError(f"{name}={value} must be at least 1")


def resized(config: AnyConfig, sizes: NewSizes) -> AnyConfig:
    """The configuration of the same model at other sizes.

    Raises:
        CheckpointError: The model has no such size.
    """
    config = copy.deepcopy(config)
    vision = vision_of(config)
    naflex = vision.naflex if sizes.naflex is None else sizes.naflex
    if naflex and sizes.image_size is not None:
        raise CheckpointError("a NaFlex tower takes images of any size: leave --image_size out")
    form = fields_of_form(vision, naflex, patch_size=sizes.patch_size, image_size=sizes.image_size)
    fields = {**vision.to_dict(), **form}
    changed = cast(SiglipExtVisionConfig, SiglipExtVisionConfig.from_dict(fields))
    if sizes.text_length is not None:
        text = getattr(config, "text_config", None)
        if not isinstance(text, SiglipExtTextConfig):
            raise CheckpointError("--text_length: there is no SigLIP text tower whose positions could be stretched")
        text.max_position_embeddings = sizes.text_length
    if isinstance(config, SiglipExtVisionConfig):
        return changed
    config.vision_config = changed
    return config


def for_stock_classes(config: AnyConfig, drop_projection: bool = False, zero_bias: bool = False) -> AnyConfig:
    """The configuration with what the stock classes demand, a text head.

    Args:
        drop_projection: Also without what they cannot hold: the projection of a tower that gives all patches.
        zero_bias: Also with a logit bias, which a softmax model lacks.
    """
    config = copy.deepcopy(config)
    if zero_bias:
        config.logit_bias_init, config.loss_type = 0.0, "sigmoid"
    text = getattr(config, "text_config", None)
    if isinstance(text, SiglipExtTextConfig):
        text.use_head = True
    elif drop_projection and isinstance(config, SiglipExtVisionConfig) and config.pooling == "none":
        config.projection_size = None
    return config


def identity_head(config: SiglipExtTextConfig) -> dict[str, torch.Tensor]:
    """The head that changes nothing, for a form that demands one (a checkpoint without)."""
    width = config.hidden_size
    return {"text_model.head.weight": torch.eye(width), "text_model.head.bias": torch.zeros(width)}


def zero_bias() -> dict[str, torch.Tensor]:
    """The bias that changes nothing, for a form that demands one (a softmax checkpoint, which has none)."""
    return {"logit_bias": torch.zeros(1)}


def constants_for(source: AnyConfig, config: AnyConfig) -> dict[str, torch.Tensor]:
    """The tensors that a written form demands and the checkpoint lacks: a head that changes nothing, a bias of 0."""
    constants: dict[str, torch.Tensor] = {}
    if not isinstance(source, SiglipExtConfig) or not isinstance(config, SiglipExtConfig):
        return constants
    text, wanted = source.text_config, config.text_config
    if isinstance(text, SiglipExtTextConfig) and getattr(wanted, "use_head", False) and not text.use_head:
        constants |= identity_head(text)
    if source.logit_bias_init is None and config.logit_bias_init is not None:
        constants |= zero_bias()
    return constants


def check_complete(params: Arrays, table: list[Rule], unknown: Collection[str]) -> None:
    """No array is unknown, every array that a rule takes is there, and a stack holds exactly the tower's layers."""
    if unknown:
        raise CheckpointError(f"nothing here understands {some(unknown, 5)}")
    missing = {slot.name for rule in table for slot in rule.slots if slot.name not in params}
    if missing:
        raise CheckpointError(f"the checkpoint has no {some(missing, 5)}")
    layers: dict[str, int] = {}
    for rule in table:
        for slot in rule.slots:
            dtype = params[slot.name].dtype
            if dtype is None or not dtype.is_floating_point:
                raise CheckpointError(f"{slot.name} holds no floating-point numbers")
            if slot.layer is not None:
                layers[slot.name] = slot.layer + 1
    for name, depth in layers.items():
        if params[name].shape[:1] != (depth,):
            raise CheckpointError(f"{name} has the shape {params[name].shape}, other arrays stack {depth} layers")


def check_shapes(plan: Plan, arrays: Arrays, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every tensor of the model is made, and from arrays of fitting shapes.

    Args:
        shapes: The model's tensors by name.

    Raises:
        CheckpointError: Naming the first tensor that does not fit.
    """
    made = {rule.torch_name for rule in plan.rules} | set(plan.constants)
    if made != set(shapes):
        names = ", ".join(sorted(made ^ set(shapes))[:5])
        raise CheckpointError(f"the model and the checkpoint do not have the same tensors: {names}")
    for rule in plan.rules:
        wanted = shapes[rule.torch_name]
        found = ", ".join(f"{slot.name} {arrays[slot.name].shape}" for slot in rule.slots)
        try:
            _, tensor = next(to_torch([rule], lambda name: torch.empty(arrays[name].shape, device="meta")))
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"the arrays do not fit {rule.torch_name}: {found}: {error}") from error
        shape = tuple(tensor.shape)
        if rule.torch_name not in plan.changes and shape != wanted:
            raise CheckpointError(f"the arrays do not fit {rule.torch_name} {wanted}, they give {shape}: {found}")
