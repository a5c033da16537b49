"""What happens to every array of a checkpoint: where it goes, how it changes, what is left out. No data are read."""

import copy
from dataclasses import dataclass, field

import torch

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from .big_vision.layouts import stacked_towers
from .big_vision.names import check_complete, identity_head, rules, unclaimed, zero_bias
from .containers.arrays import Arrays
from .errors import CheckpointError
from .name_map import Rule, to_torch
from .resize import Change, changes_between


AnyConfig = SiglipExtConfig | SiglipExtVisionConfig
PROJECTION = ("img/head/kernel", "img/head/bias")
LEFT_OUT = {  # an array, or the prefix of several: what it is
    "llm/": "PaliGemma's language model",
    "t": "the temperature of a model of one tower (CLIPPO)",
    "img/head/": "the image tower's projection, which the stock classes cannot hold",
}


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
    """The sizes that a user wants changed; None leaves the checkpoint's."""

    image_size: int | None = None
    patch_size: int | None = None
    text_length: int | None = None
    naflex: bool | None = None


def vision_of(config: AnyConfig) -> SiglipExtVisionConfig:
    return config if isinstance(config, SiglipExtVisionConfig) else config.vision_config


def resized(config: AnyConfig, sizes: NewSizes) -> AnyConfig:
    """The configuration of the same model at other sizes.

    Raises:
        CheckpointError: The model has no such size.
    """
    config = copy.deepcopy(config)
    vision = vision_of(config)
    fields = vision.to_dict()
    if sizes.patch_size is not None:
        fields["patch_size"] = sizes.patch_size
    naflex = vision.naflex if sizes.naflex is None else sizes.naflex
    if naflex and sizes.image_size is not None:
        raise CheckpointError("a NaFlex tower takes images of any size: leave --image-size out")
    if naflex:
        fields |= {"image_size": None, "num_patches": vision.grid_size**2, "naflex": True}
    else:
        side = vision.image_size or vision.grid_size * fields["patch_size"]
        fields |= {"image_size": sizes.image_size or side, "num_patches": None, "naflex": False}
    changed = SiglipExtVisionConfig.from_dict(fields)
    if sizes.text_length is not None:
        text = getattr(config, "text_config", None)
        if not isinstance(text, SiglipExtTextConfig):
            raise CheckpointError("--text-length: there is no SigLIP text tower whose positions could be stretched")
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


def constants_for(source: AnyConfig, config: AnyConfig) -> dict[str, torch.Tensor]:
    """The tensors that a written form demands and the checkpoint lacks: a head that changes nothing, a bias of 0."""
    text, wanted = getattr(source, "text_config", None), getattr(config, "text_config", None)
    constants = {}
    if isinstance(text, SiglipExtTextConfig) and wanted.use_head and not text.use_head:
        constants |= identity_head(text)
    if isinstance(source, SiglipExtConfig) and source.logit_bias_init is None and config.logit_bias_init is not None:
        constants |= zero_bias()
    return constants


def left_out_as(name: str) -> str | None:
    """Which entry of LEFT_OUT an array falls under."""
    return next((key for key in LEFT_OUT if name == key or (key.endswith("/") and name.startswith(key))), None)


def plan_big_vision(params: Arrays, source: AnyConfig, config: AnyConfig) -> Plan:
    """The plan for a checkpoint of big_vision.

    Args:
        params: Its arrays, under today's names.
        source: The configuration that describes it.
        config: The configuration of the model to write.

    Raises:
        CheckpointError: Arrays are missing, contradict each other, or nothing here understands them.
    """
    table = rules(source, stacked_towers(params))
    if vision_of(config).projection_size is None:
        table = [rule for rule in table if rule.slots[0].name not in PROJECTION]
    left_out: dict[str, list[str]] = {}
    unknown = []
    for name in unclaimed(params, table):
        key = left_out_as(name)
        if key is None or (key == "img/head/" and name not in PROJECTION):
            unknown.append(name)
        else:
            left_out.setdefault(LEFT_OUT[key], []).append(name)
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckpointError(f"nothing here understands {shown}")
    check_complete(params, table)
    return Plan(config, table, changes_between(source, config), constants_for(source, config), left_out)


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
        try:
            _, tensor = next(to_torch([rule], lambda name: torch.empty(arrays[name].shape, device="meta")))
            change = plan.changes.get(rule.torch_name)
            shape = shapes[rule.torch_name] if change is not None else tuple(tensor.shape)
        except (RuntimeError, IndexError) as error:
            found = ", ".join(f"{slot.name} {arrays[slot.name].shape}" for slot in rule.slots)
            raise CheckpointError(f"the arrays do not fit {rule.torch_name}: {found}: {error}") from error
        if shape != shapes[rule.torch_name]:
            found = ", ".join(f"{slot.name} {arrays[slot.name].shape}" for slot in rule.slots)
            raise CheckpointError(
                f"the arrays do not fit {rule.torch_name} {shapes[rule.torch_name]}, they give {shape}: {found}"
            )
