"""The files that Google released, with what a file itself does not tell: `catalogue.yaml`, read here."""

import difflib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict

import yaml
from transformers import BertConfig

from modeling_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig

from ..checkpoint import BERT, SOFTMAX, Choices, Tokenizer, TowerSizes
from ..errors import AnotherFileError, CheckpointError
from ..plan import AnyConfig, vision_of


# What a checkpoint's shapes must agree on with its entry.
SIZES = tuple(TowerSizes.__annotations__)
VISION_FACTS = (*SIZES, "patch_size", "naflex", "num_patches", "image_size", "pooling", "projection_size")
TEXT_FACTS = (*SIZES, "vocab_size", "max_position_embeddings", "use_head", "projection_size")
BERT_FACTS = (*SIZES, "vocab_size")


@dataclass(frozen=True)
class Entry:
    """One released file.

    Args:
        name: The file's name without `.npz`; a star in it stands for anything.
        family: "siglip", "siglip2", "lit", "clippo" or "paligemma".
        licence: The Hub's identifier of the licence of the weights; None where none was found.
        image: Tower and patch size, e.g. "So400m/14".
        image_size: Pixels; None for NaFlex.
        pooling: Of the image tower.
        url: Where it was released; None where that asks for consent first.
        text: The text tower's size; None where there is none.
        text_length: Tokens.
        tokenizer: None where there is no text tower.
        projection_size: Of the image tower; None for none.
        embedding_size: Of the text head; None where there is no head.
        parameters: The published number, or a text such as "93M" where it was rounded; None where none was found.
        scores: Published figures in percent.
        aliases: Other names that the same file is offered under; a star in one stands for anything.
    """

    name: str
    family: str
    licence: str | None
    image: str
    image_size: int | None
    pooling: str
    url: str | None = None
    text: str | None = None
    text_length: int | None = None
    tokenizer: Tokenizer | None = None
    projection_size: int | None = None
    embedding_size: int | None = None
    parameters: int | str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def bert(self) -> bool:
        """Whether the text tower is LiT's BERT."""
        return self.tokenizer is not None and self.tokenizer.rules == "bert"

    @property
    def choices(self) -> Choices:
        """What the file does not tell."""
        pooling = "first" if self.bert else None
        return Choices(image_size=self.image_size, image_pooling=self.pooling, text_pooling=pooling)

    def config(self) -> AnyConfig:
        """The configuration of the model."""
        size, patch_size = self.image.split("/")
        vision = SiglipExtVisionConfig(
            **towers()[size],
            patch_size=int(patch_size),
            naflex=self.image_size is None,
            image_size=self.image_size,
            pooling=self.pooling,
            projection_size=self.projection_size,
        )
        if self.text is None or self.tokenizer is None or self.text_length is None:
            return vision
        if self.bert:
            return SiglipExtConfig(
                vision_config=vision,
                text_config=BertConfig(**towers()[self.text], vocab_size=self.tokenizer.vocab_size, **BERT),
                text_pooling="first",
                text_projection_size=self.embedding_size,
                **SOFTMAX,
            )
        text = SiglipExtTextConfig(
            **towers()[self.text],
            vocab_size=self.tokenizer.vocab_size,
            max_position_embeddings=self.text_length,
            use_head=self.embedding_size is not None,
            projection_size=self.embedding_size,
            **text_tokens(self.tokenizer.rules),
        )
        return SiglipExtConfig(vision_config=vision, text_config=text)

    def agrees(self, count: int) -> bool:
        """Whether a converted model of so many parameters is of the published size."""
        width = towers()[self.image.split("/")[0]]["hidden_size"]
        if self.family == "paligemma":  # published without the projection
            count -= (width + 1) * (self.projection_size or 0)
        if self.family == "lit":  # published with a position for the class token, which is added into the token
            count += width
        if not isinstance(self.parameters, str):
            return count == self.parameters
        published = self.parameters.removesuffix("M")
        decimals = len(published.partition(".")[2])
        return f"{count / 1e6:.{decimals}f}" == published

    def check(self, found: AnyConfig) -> None:
        """Compare with the configuration that a file's shapes tell.

        Raises:
            AnotherFileError: They contradict each other.
        """
        own = self.config()
        pairs: list[tuple[str, tuple[str, ...], object, object]] = [
            ("image tower", VISION_FACTS, vision_of(own), vision_of(found))
        ]
        if self.text is not None:
            names = BERT_FACTS if self.bert else TEXT_FACTS
            pairs.append(("text tower", names, own.text_config, getattr(found, "text_config", None)))
        for tower, names, ours, theirs in pairs:
            expected, actual = ({name: getattr(config, name, None) for name in names} for config in (ours, theirs))
            wrong = [
                f"{name} {actual[name]} and not {expected[name]}" for name in names if actual[name] != expected[name]
            ]
            if wrong:
                raise AnotherFileError(
                    f"this is not {self.name}: its {tower} has {', '.join(wrong)}. "
                    "Give the right --name, or --name none"
                )


class TextTokens(TypedDict):
    """As fields of a text configuration."""

    pad_token_id: int
    eos_token_id: int


def text_tokens(rules: str) -> TextTokens:
    """Ids of the special tokens, for a text configuration: v1 pads with the end of a text, v2 with a token for it."""
    return {"pad_token_id": 0 if rules == "v2" else 1, "eos_token_id": 1}


@cache
def read() -> dict[str, Any]:
    path = resources.files("modeling_siglip_ext.conversion.released").joinpath("catalogue.yaml")
    return yaml.safe_load(path.read_text("utf-8"))


def towers() -> dict[str, TowerSizes]:
    """Sizes of the towers by name."""
    return {
        size: TowerSizes(hidden_size=width, num_hidden_layers=depth, intermediate_size=mlp, num_attention_heads=heads)
        for size, (width, depth, mlp, heads) in read()["towers"].items()
    }


@cache
def tokenizers() -> dict[str, Tokenizer]:
    return {
        name: Tokenizer(name, found["rules"], found["vocab_size"], found["repo"], tuple(found["files"]))
        for name, found in read()["tokenizers"].items()
    }


@cache
def entries() -> dict[str, Entry]:
    """All released files by name.

    Example:

    ```python
    >>> from modeling_siglip_ext.conversion.released.catalogue import entries
    >>> entries()["siglip2_b16_naflex"].image
    'B/16'

    ```"""
    found = {}
    for family, part in read()["families"].items():
        for name, fields in part["files"].items():
            fields = {**part["defaults"], **(fields or {})}
            bucket, path = fields.pop("bucket", None), fields.pop("path", f"{name}.npz")
            if "text" in fields:
                fields["tokenizer"] = tokenizers()[fields["tokenizer"]]
                fields.setdefault("embedding_size", towers()[fields["text"]]["hidden_size"])
            fields["aliases"] = tuple(fields.get("aliases", ()))
            url = None if bucket is None else f"{bucket}/{path}"
            found[name] = Entry(name=name, family=family, url=url, **fields)
    return found


def lookup(name: str) -> Entry | None:
    """The entry of a name or alias; the exact one before one with a star."""
    names = {alias: entry for entry in entries().values() for alias in (entry.name, *entry.aliases)}
    if name in names:
        return names[name]
    return next((entry for alias, entry in names.items() if "*" in alias and fnmatchcase(name, alias)), None)


def find(name: str) -> Entry:
    """The entry of a name, with or without `.npz`.

    Raises:
        CheckpointError: No such entry; the nearest ones are suggested.
    """
    wanted = name.removesuffix(".npz")
    found = lookup(wanted)
    if found is not None:
        return found
    near = difflib.get_close_matches(wanted, entries(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`siglip-ext-convert list` shows all"
    raise CheckpointError(f"{name!r} is not in the catalogue; {hint}")


def recognise(path: str | Path) -> Entry | None:
    """The entry that a file's or its folder's name stands for, if any."""
    path = Path(str(path).rstrip("/"))
    # one file is called checkpoint.npz, in a folder of its own
    return lookup(path.name.removesuffix(".npz")) or lookup(path.parent.name)
