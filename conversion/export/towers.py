"""The parts of a model that become files: modules whose inputs and outputs have the names that clients look for.

The names are those of optimum and transformers.js; the embedding at unit length stands beside what they expect. Inputs
and outputs are float32 and int64 whatever the weights are, because clients give nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.configuration_siglip_ext import is_foreign

from ..errors import CheckpointError
from ..resize import AnyConfig


VISION, TEXT, DUAL = "vision_model", "text_model", "model"
OUTPUTS = {
    VISION: ("last_hidden_state", "pooler_output", "image_embeds"),
    TEXT: ("last_hidden_state", "pooler_output", "text_embeds"),
    DUAL: ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"),
}
# Sizes of the examples: a dimension that is 1 while tracing would stay 1.
IMAGES, TEXTS, TOKENS = 2, 3, 5
GRIDS = ((3, 2), (2, 4))


@dataclass(frozen=True)
class Tower:
    """What is exported to one file.

    Args:
        name: of the file, without its suffix: a key of `OUTPUTS`.
        module: takes the inputs by name and gives a tuple of the outputs.
        inputs: examples by name.
        free: the dimensions of each input that any call may choose, with their names.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    free: dict[str, dict[int, str]]

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS[self.name]


class VisionTower(nn.Module):
    """`get_image_features` of a model, or an image tower alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        run = getattr(self.model, "get_image_features", self.model)
        return vectors_of(run(pixel_values.to(self.model.dtype), pixel_attention_mask, spatial_shapes))


class TextTower(nn.Module):
    """`get_text_features` of a model, or a text tower alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        run = getattr(self.model, "get_text_features", self.model)
        return vectors_of(run(input_ids, attention_mask))


def vectors_of(output: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token states, the embedding, and the embedding at unit length."""
    pooled = output.pooler_output.float()
    return output.last_hidden_state.float(), pooled, F.normalize(pooled, dim=-1)


class DualTower(nn.Module):
    """Both towers and the scores of all pairs."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = cast(SiglipExtModel, model)
        self.vision, self.text = VisionTower(model), TextTower(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        texts = self.text(input_ids, attention_mask)[-1]
        images = self.vision(pixel_values, pixel_attention_mask, spatial_shapes)[-1]
        logits = images @ texts.t() * self.model.logit_scale.float().exp()
        if self.model.logit_bias is not None:
            logits = logits + self.model.logit_bias.float()
        return logits, logits.t(), texts, images


MODULES = {VISION: VisionTower, TEXT: TextTower, DUAL: DualTower}


# The most that a free dimension may be, unless the model says less.
LIMIT = 1 << 16


def vision_inputs(config: Any, size: tuple[int, int]) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Examples for an image tower, and their free dimensions.

    Args:
        config: of the tower.
        size: height and width in pixels of an image, where they are fixed.
    """
    images = {0: "image_batch_size"}
    if not getattr(config, "naflex", False):
        return {"pixel_values": torch.zeros(IMAGES, 3, *size)}, {"pixel_values": images}
    grids = torch.tensor(GRIDS)
    lengths = grids.prod(dim=1, keepdim=True)
    patches = images | {1: "num_patches"}
    values = config.num_channels * config.patch_size**2
    inputs = {
        "pixel_values": torch.zeros(IMAGES, int(lengths.max()), values),
        "pixel_attention_mask": (torch.arange(int(lengths.max())) < lengths).long(),
        "spatial_shapes": grids,
    }
    return inputs, {"pixel_values": patches, "pixel_attention_mask": patches, "spatial_shapes": images}


def text_inputs(config: Any) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Examples for a text tower, and their free dimensions: SigLIP's have one length and no mask."""
    texts = {0: "text_batch_size"}
    if not is_foreign(config):
        ids = torch.zeros(TEXTS, config.max_position_embeddings, dtype=torch.long)
        return {"input_ids": ids}, {"input_ids": texts}
    inputs = {name: torch.ones(TEXTS, TOKENS, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    return inputs, dict.fromkeys(inputs, texts | {1: "sequence_length"})


def limits(config: AnyConfig) -> dict[str, int]:
    """The most that each free dimension may be, and the number of tokens that there are."""
    text = getattr(config, "text_config", None)
    length = getattr(text, "max_position_embeddings", None) or LIMIT
    axes = ("image_batch_size", "text_batch_size", "num_patches")
    return {**dict.fromkeys(axes, LIMIT), "sequence_length": length, "vocabulary": getattr(text, "vocab_size", 0)}


def vision_of(config: AnyConfig) -> Any:
    """The configuration of the image tower, SigLIP's or one from elsewhere."""
    return getattr(config, "vision_config", config)


def build_tower(model: PreTrainedModel, config: AnyConfig, name: str, size: tuple[int, int]) -> Tower:
    """A tower of a model.

    Args:
        model: the whole one, or that tower alone; of ours, in evaluation mode.
        config: of the whole model, or of an image tower alone.
        name: one of `OUTPUTS`.
        size: height and width in pixels of an image, where they are fixed.
    """
    inputs: dict[str, torch.Tensor] = {}
    free: dict[str, dict[int, str]] = {}
    if name != VISION:
        inputs, free = text_inputs(cast(SiglipExtConfig, config).text_config)
    if name != TEXT:
        images, sizes = vision_inputs(vision_of(config), size)
        inputs, free = inputs | images, free | sizes
    return Tower(name, MODULES[name](model).eval(), inputs, free)


def check_towers(config: AnyConfig, names: Iterable[str]) -> None:
    """
    Raises:
        CheckpointError: the model has no such tower, or its image tower gives no embedding.
    """
    if not isinstance(config, SiglipExtConfig) and set(names) != {VISION}:
        raise CheckpointError("the folder holds an image tower alone: export it with --towers image")
    if getattr(vision_of(config), "pooling", None) == "none":
        raise CheckpointError(
            'the image tower has pooling="none": it gives a vector a patch and no embedding. Load it with '
            'pooling="mean", save it and export that'
        )
