"""What is known of a checkpoint, whatever its format: the one thing that `convert` takes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from modeling_siglip_ext import SiglipExtTextConfig

from .containers.arrays import Arrays
from .containers.sources import Source
from .plan import AnyConfig, Plan, vision_of


# What no file tells of LiT's BERT, and the fields of a model that was trained without a bias.
BERT: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-12, "pad_token_id": 0}
SOFTMAX: dict[str, Any] = {"loss_type": "softmax", "logit_bias_init": None}


class TowerSizes(TypedDict):
    """Of a tower's transformer, as fields of a configuration."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int


@dataclass(frozen=True)
class Choices:
    """What neither names nor shapes of a checkpoint tell; None leaves the usual value."""

    image_size: int | None = None
    image_pooling: str | None = None
    text_pooling: str | None = None
    text_heads: int | None = None
    image_heads: int | None = None
    image_act: str | None = None


def choices_of(config: AnyConfig) -> Choices:
    """The choices by which a checkpoint became the model of a configuration."""
    vision = vision_of(config)
    text = getattr(config, "text_config", None)
    own = text is None or isinstance(text, SiglipExtTextConfig)
    return Choices(
        image_size=vision.image_size if vision.position_embedding_type == "sincos2d" else None,
        image_pooling=vision.pooling,
        text_pooling=getattr(text, "pooling", None) if own else getattr(config, "text_pooling", None),
        text_heads=getattr(text, "num_attention_heads", None),
        image_heads=vision.num_attention_heads,
        image_act=vision.hidden_act,
    )


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer that a model's texts were cut with.

    Args:
        name: In the papers' words.
        rules: "v1", "v2" (see `modeling_siglip_ext.tokenization_siglip_ext`) or "bert".
        vocab_size: Rows of the model's table.
        repo: A Hub repository that has it.
        files: What to fetch from there.
    """

    name: str
    rules: str
    vocab_size: int
    repo: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared: resized to the tower's size and normalised.

    Args:
        resample: "bilinear", as every big_vision model was trained, or "bicubic".
        mean, std: Of the channels, of values in [0, 1].
    """

    resample: str = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A checkpoint of one format, opened; its arrays are read when they are asked for.

    Args:
        source: The file or folder.
        arrays: The model's arrays, under the names that the plan's rules use.
        config: Of the model that it holds, in our form.
        layout: How arrays are called and stored, for the way back; its `kind` is the format.
        tokenizer: The one that the model's texts were cut with, where that is known.
        text_length: Tokens of a text, where the text tower takes any number.
        catalogue: The released file that it is.
        licence: The Hub's identifier, of the weights.
        images: How they are prepared.
        tokenizer_folder: Where its own tokenizer is, if it has one.
        tokenizer_ready: Whether that one needs no further rules.
        remarks: What the user should know of it.
    """

    source: Source
    arrays: Arrays
    config: AnyConfig
    layout: dict[str, Any]
    tokenizer: Tokenizer | None = None
    text_length: int | None = None
    catalogue: str | None = None
    licence: str | None = None
    images: Preprocessing = Preprocessing()
    tokenizer_folder: Path | None = None
    tokenizer_ready: bool = False
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def plan(self, config: AnyConfig) -> Plan:
        """How it becomes the model of a configuration.

        Raises:
            CheckpointError: Arrays are missing, contradict each other, or nothing here understands them.
        """

    @abstractmethod
    def lines(self) -> list[str]:
        """What `inspect` says about the file, beside the towers."""
