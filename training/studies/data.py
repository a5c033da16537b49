"""The bundled emoji for studies: small images and token ids in memory, split three ways.

Settings are chosen on the validation part, a tenth of the training rows; the held-out rows are for the figures that a
study reports.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from modeling_siglip_ext import train_tokenizer

from ..data.emoji.loader import load_emoji


IMAGE_SIZE = 32
TEXT_LENGTH = 16
# As words are frequent in the names, most tokens are whole words.
VOCABULARY = 3000
VALIDATION_SHARE = 10


@dataclass(frozen=True)
class Part:
    """Images (N, 3, 32, 32) uint8 and, for each language, token ids (N, 16)."""

    images: torch.Tensor
    tokens: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class StudyData:
    train: Part
    validation: Part
    held_out: Part
    tokens: dict[str, int]
    """Of the text tower's configuration: `vocab_size`, `pad_token_id`, `eos_token_id`."""


@lru_cache(maxsize=2)
def load_data(languages: tuple[str, ...]) -> StudyData:
    """Rows that are named in each of the languages; the tokenizer is trained on the training names in all of them."""
    rows = {split: load_emoji(split, languages=languages) for split in ("train", "test")}
    names = {
        split: {language: list(part[language]) for language in languages} | {"emoji": list(part["emoji"])}
        for split, part in rows.items()
    }
    named = {
        split: [i for i in range(len(part)) if all(names[split][language][i] for language in languages)]
        for split, part in rows.items()
    }
    validation = [i for i in named["train"] if _digest(names["train"]["emoji"][i]) % VALIDATION_SHARE == 0]
    train = sorted(set(named["train"]) - set(validation))
    corpus = [names["train"][language][i] for language in languages for i in train]
    # several languages share the vocabulary, but not its size
    tokenizer = train_tokenizer(corpus, vocab_size=VOCABULARY * len(languages), max_length=TEXT_LENGTH)
    images = {
        split: torch.from_numpy(np.stack([_pixels(image) for image in part["image"]])) for split, part in rows.items()
    }

    def part(split: str, indices: Sequence[int]) -> Part:
        tokens = {
            language: tokenizer(
                [names[split][language][i] for i in indices],
                padding="max_length",
                max_length=TEXT_LENGTH,
                truncation=True,
                return_tensors="pt",
            )["input_ids"]
            for language in languages
        }
        return Part(images[split][torch.tensor(indices)], tokens)

    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    parts = part("train", train), part("train", validation), part("test", named["test"])
    return StudyData(*parts, {"vocab_size": len(tokenizer), **ends})


def _digest(text: str) -> int:
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16)


def _pixels(image: Image.Image) -> np.ndarray:
    small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1)
