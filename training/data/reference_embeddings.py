"""What a reference model makes of a dataset, computed once by `siglip-ext-train precompute`, for active curation.

The rows of such a folder are the images, in the order of the dataset, and after them the captions of all images: all,
because every epoch draws another one, and a text costs a fraction of what an image does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from modeling_siglip_ext import embedding_store as store

from .fingerprint import images_digest, values_digest
from .samples import captions_if_any


REFERENCE = "reference_embeds"
"""Name in samples and batches."""
MAKE = "run `siglip-ext-train precompute --reference_name_or_path`, which continues where it stopped"
SCALE, BIAS = "logit_scale", "logit_bias"


@dataclass(frozen=True)
class ReferenceEmbeddings:
    """
    Args:
        embeds: (N + M, D) float32, normalized: of N images, NaN where one could not be read, and of M captions.
        starts: for each image the row of its first caption.
        unreadable: why an image could not be read, by its number.
        scale, bias: the reference's `logit_scale` (a logarithm) and `logit_bias`.
        identity: a hash of all that these depend on.
    """

    embeds: torch.Tensor
    starts: Sequence[int]
    unreadable: Mapping[int, str]
    scale: float
    bias: float
    identity: str

    def of(self, image: int, owner: int, caption: int) -> torch.Tensor:
        """(2, D), of an image and of a caption.

        Args:
            image: its number in the dataset.
            owner: number of the image that has the caption.
            caption: its number among that image's.
        """
        return torch.stack([self.embeds[image], self.embeds[self.starts[owner] + caption]])


def captions_of(rows: Dataset, columns: Sequence[str]) -> list[list[str]]:
    """For each row the captions that training draws from; none where it leaves the row out."""
    return [captions_if_any(values) for values in zip(*(rows[column] for column in columns))]


def of_the_data(rows: Dataset, image_column: str, captions: Sequence[Sequence[str]]) -> dict[str, str | int]:
    """What embeddings of images and captions depend on but for the model."""
    return {
        "rows": len(rows) + sum(map(len, captions)),
        "images": images_digest(rows, image_column),
        "captions": values_digest(captions),
    }


def check_reference_embeddings(folder: str | Path) -> dict[str, Any]:
    """The settings of a folder of embeddings of a reference, of which all parts are there.

    Raises:
        FileNotFoundError: it holds no embeddings, or not all of them.
        ValueError: it holds others.
    """
    settings, _ = store.located(Path(folder), MAKE)
    if not settings.keys() >= {SCALE, BIAS}:
        raise ValueError(f"{folder} holds embeddings of an image tower, not of a reference model: {MAKE}")
    return settings


def load_reference_embeddings(
    folder: str | Path, rows: Dataset, image_column: str = "image", caption_column: str | Sequence[str] = "caption"
) -> ReferenceEmbeddings:
    """Embeddings of all rows and captions, mapped from the files where they are in one.

    Args:
        folder: of `siglip-ext-train precompute --reference_name_or_path`.
        rows, image_column, caption_column: the images and captions they must have been made of.

    Raises:
        FileNotFoundError: no embeddings there, or not all of them.
        ValueError: they are of other images or captions, or of no reference model.
    """
    settings = check_reference_embeddings(folder)
    captions = captions_of(rows, [caption_column] if isinstance(caption_column, str) else caption_column)
    remedy = "use the dataset and the columns they were made of, or precompute them again in another folder"
    store.check_settings(folder, of_the_data(rows, image_column, captions), remedy, missing=MAKE)
    embeds, errors, _ = store.read(folder, missing=MAKE)
    content = {name: value for name, value in settings.items() if name not in store.NOT_CONTENT}
    starts = list(accumulate(map(len, captions), initial=len(rows)))
    return ReferenceEmbeddings(embeds, starts, errors, settings[SCALE], settings[BIAS], store.fingerprint(content))
