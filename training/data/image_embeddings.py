"""Training from the embeddings of a locked image tower, which `siglip-ext-train precompute` has computed once.

LiT and SigLiT spend most of their time on images whose embeddings never change. Training from them decodes no image
and needs no image tower.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoImageProcessor

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.image_budget import ImageBudget

from .dataset import CaptionedRows
from .fingerprint import fingerprint
from .reference_embeddings import ReferenceEmbeddings
from .samples import SkipCounter


def load_embeddings(
    folder: str | Path, model: str, rows: Dataset, image_column: str = "image", pooling: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of all rows and which of them there are, mapped from the files where they are in one.

    Args:
        folder: of `siglip-ext-train precompute`.
        model, pooling: the image tower they must have been made by; see `ImageEncoder`.
        rows, image_column: the images they must have been made of.

    Returns:
        (N, D) float32, NaN where an image could not be read, and (N,) bool, False there.

    Raises:
        FileNotFoundError: no embeddings there, or not all of them.
        ValueError: they were made by another model, with other preprocessing or from other images.
    """
    image_processor = AutoImageProcessor.from_pretrained(model)
    again = "run `siglip-ext-train precompute`, which continues where it stopped"
    expected = fingerprint(model, pooling, image_processor, rows, image_column, budget_of(folder, again))
    store.check_settings(folder, expected, "use what they were made of, or precompute them again", missing=again)
    embeds, errors, _ = store.read(folder, missing=again)
    valid = torch.ones(len(embeds), dtype=torch.bool)
    valid[list(errors)] = False
    return embeds, valid


def budget_of(folder: str | Path, missing: str = store.MISSING) -> ImageBudget:
    """What a NaFlex tower saw of the images of a folder of embeddings; the defaults for any other tower.

    Raises:
        FileNotFoundError: no embeddings there; `missing` says what to do.
    """
    saved = store.read_settings(Path(folder), missing)
    return ImageBudget(saved.get("max_num_patches"), saved.get("upscale", True))


class EmbeddingTextDataset(CaptionedRows):
    """One image embedding and one caption per index, in place of `ImageTextDataset`.

    Args:
        rows: the dataset; only its captions are read.
        embeddings: (M, D), and `valid` (M,) whether an image could be read.
        indices: for each of `rows` its row of `embeddings`; the same number by default.
        caption_column, seed, pair_column, reference, max_bad_fraction, skips, called: as for `ImageTextDataset`.
    """

    def __init__(
        self,
        rows: Dataset,
        embeddings: torch.Tensor,
        valid: torch.Tensor,
        indices: Sequence[int] | None = None,
        *,
        caption_column: str | Sequence[str] = "caption",
        seed: int = 0,
        pair_column: str | None = None,
        reference: ReferenceEmbeddings | None = None,
        max_bad_fraction: float = 0.01,
        skips: SkipCounter | None = None,
        called: str = "example",
    ):
        places = range(len(rows)) if indices is None else indices
        unreadable = [row for row, place in enumerate(places) if not valid[place]]
        reasons = dict.fromkeys(unreadable, "its image could not be read by precompute")
        super().__init__(rows, caption_column, seed, reasons, called, places, pair_column, reference=reference)
        (skips or SkipCounter(max_bad_fraction, grace=len(rows))).add(len(rows), self.left_out)
        self.embeddings = embeddings
        self.places = [places[row] for row in self.rows]

    def __getitem__(self, index: int) -> dict:
        return {
            "embedding": self.embeddings[self.places[index]],
            "caption": self.caption(index),
            "sample": {"name": self.rows[index], "read": 1, "skipped": []},
            **self.further(index),
        }
