"""What is known of a checkpoint, whatever its format: the one thing that `convert` takes."""

from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from modeling_siglip_ext import SiglipExtTextConfig

from .containers.arrays import Arrays
from .containers.sources import Source
from .plan import AnyConfig, Plan, vision_of


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
class Facts:
    """What else belongs into the report and the card.

    Args:
        layout: How arrays are called and stored, for the way back; its `kind` is the format.
        catalogue: The released file that it is.
        licence: The Hub's identifier, of the weights.
        resample: Of the images, "bilinear" or "bicubic".
    """

    layout: dict[str, Any] = field(default_factory=dict)
    catalogue: str | None = None
    licence: str | None = None
    resample: str = "bilinear"


class Checkpoint(Protocol):
    """A checkpoint of one format, opened; its arrays are read when they are asked for."""

    @property
    def source(self) -> Source:
        """The file or folder."""

    @property
    def arrays(self) -> Arrays:
        """The model's arrays, under the names that the plan's rules use."""

    @property
    def config(self) -> AnyConfig:
        """Of the model that it holds, in our form."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The one that the model's texts were cut with, where that is known."""

    @property
    def text_length(self) -> int | None:
        """Tokens of a text, where the text tower takes any number."""

    @property
    def facts(self) -> Facts: ...

    def plan(self, config: AnyConfig) -> Plan:
        """How it becomes the model of a configuration.

        Raises:
            CheckpointError: Arrays are missing, contradict each other, or nothing here understands them.
        """

    def lines(self) -> list[str]:
        """What `inspect` says about the file, beside the towers."""
