"""What a model card must know of a model to say how it is used: read from its folder or its configuration."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig

from ..configuration_siglip_ext import SiglipExtConfig, SiglipExtVisionConfig
from ..files import read_json
from ..texts import NO_LENGTH, STOCK_TEXT_LENGTH


STOCK_PATCH = 16
HELD_OUT = "held_out"
CAPTIONS = "captions.json"
REMEDY = "save the model again"
CONFIGS = {
    "siglip": SiglipExtConfig,
    "siglip2": SiglipExtConfig,
    "siglip_ext": SiglipExtConfig,
    "siglip_vision_model": SiglipExtVisionConfig,
    "siglip2_vision_model": SiglipExtVisionConfig,
    "siglip_ext_vision_model": SiglipExtVisionConfig,
}


@dataclass(frozen=True)
class ModelFacts:
    """How a model is loaded and what it takes.

    Args:
        pair: image and text tower; False for an image tower alone.
        stock: saved in the form of the stock classes of transformers; False for ours, which needs
            `trust_remote_code`.
        naflex: images keep their aspect ratio.
        image_size: pixels of a side; None with `naflex`.
        max_patches: patches of an image with `naflex`, otherwise None.
        text_length: tokens of a text; None for an image tower.
        tokenizer: whether the folder has one.
        pooled: whether an image becomes one vector, or one a patch.
        softmax: whether the model was trained with the softmax loss of CLIP.
        padding_matters: whether the text tower attends to padding, as SigLIP's do.
        odd_patch: pixels of a NaFlex patch, where it is not the 16 that the stock processor insists on.
    """

    pair: bool
    stock: bool
    naflex: bool
    image_size: int | None
    max_patches: int | None
    text_length: int | None
    tokenizer: bool = True
    pooled: bool = True
    softmax: bool = False
    padding_matters: bool = True
    odd_patch: int | None = None

    @property
    def task(self) -> str:
        """The pipeline of transformers that runs it."""
        return "zero-shot-image-classification" if self.pair else "image-feature-extraction"

    @property
    def needs_package(self) -> bool:
        """Whether the zero-shot pipeline needs this package: the stock one pads every text to 64 tokens."""
        return self.pair and self.stock and self.text_length != STOCK_TEXT_LENGTH


@dataclass(frozen=True)
class Example:
    """The image and the labels in a card's snippets.

    Args:
        image: a file; of the repository with `own`, otherwise the reader's.
        labels: candidate labels.
        template: what makes a text of a label.
        own: whether the image lies beside the card.
    """

    image: str = "cat.jpg"
    labels: tuple[str, ...] = ("cat", "dog", "bicycle")
    template: str = "This is a photo of a {}."
    own: bool = False

    @property
    def texts(self) -> list[str]:
        return [self.template.replace("{}", label) for label in self.labels]


def facts_of_config(
    config: PreTrainedConfig, *, stock: bool, text_length: int | None = None, tokenizer: bool = True
) -> ModelFacts:
    """The facts of a configuration in our form.

    Args:
        config: `SiglipExtConfig` or `SiglipExtVisionConfig`.
        stock: see `ModelFacts`.
        text_length: where the text tower takes texts of any length.
        tokenizer: see `ModelFacts`.
    """
    pair = isinstance(config, SiglipExtConfig)
    vision = config.vision_config if pair else config
    naflex = getattr(vision, "naflex", False)
    if pair:
        text_length = text_length or getattr(config.text_config, "max_position_embeddings", None)
    return ModelFacts(
        pair=pair,
        stock=stock,
        naflex=naflex,
        image_size=None if naflex else getattr(vision, "image_size", None),
        max_patches=vision.num_patches if naflex else None,
        text_length=text_length if pair else None,
        tokenizer=tokenizer and pair,
        pooled=getattr(vision, "pooling", None) != "none" or pair,
        softmax=pair and config.loss_type == "softmax",
        padding_matters=pair and "siglip" in config.text_config.model_type,
        odd_patch=vision.patch_size if naflex and vision.patch_size != STOCK_PATCH else None,
    )


def facts_of(folder: str | Path) -> ModelFacts:
    """The facts of a model folder.

    Raises:
        FileNotFoundError: no `config.json`.
        ValueError: not a SigLIP model.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: not a folder of a whole model")
    model_type = read_json(file, REMEDY).get("model_type")
    if model_type not in CONFIGS:
        raise ValueError(f"{file}: {model_type!r} is none of {', '.join(CONFIGS)}")
    config = CONFIGS[model_type].from_pretrained(folder)
    length, settings, images = None, folder / "tokenizer_config.json", folder / "processor_config.json"
    if settings.is_file() and "siglip" not in getattr(getattr(config, "text_config", None), "model_type", "siglip"):
        found = read_json(settings, REMEDY).get("model_max_length")
        length = found if isinstance(found, int) and found < NO_LENGTH else None
    facts = facts_of_config(
        config, stock="siglip_ext" not in model_type, text_length=length, tokenizer=settings.is_file()
    )
    if facts.naflex and images.is_file():  # how many patches an image gets is the processor's choice
        found = read_json(images, REMEDY).get("image_processor", {}).get("max_num_patches")
        facts = replace(facts, max_patches=found or facts.max_patches)
    return facts


def example_of(folder: str | Path) -> Example:
    """A held-out image of a training run and captions to choose among; otherwise the reader's own image."""
    listing = Path(folder) / HELD_OUT / CAPTIONS
    if not listing.is_file():
        return Example()
    images = read_json(listing, "remove the folder, or train again")["images"]
    return Example(f"{HELD_OUT}/{next(iter(images))}", tuple(images.values())[:4], "{}", own=True)
