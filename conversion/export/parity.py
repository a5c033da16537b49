"""How near the vectors of an exported file are to those of the model, in float32 by torch.

Plain cosines flatter random and untrained models, all of whose vectors point one way: cosines after centring stand
beside them. Answers tell what users see: which text is nearest to an image, and the other way round.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Parity:
    """Vectors of one tower against float32.

    Args:
        inputs: their number.
        cosine_least, cosine_mean: of an input's two vectors.
        largest_difference: of a component of the vectors at unit length.
        centred_cosine_least, centred_cosine_mean: after the mean of all vectors is taken from them.
        batch_cosine_least, batch_largest_difference: of an input by itself against the same among others: 1 and 0 for
            an engine that computes each input by itself.
    """

    inputs: int
    cosine_least: float
    cosine_mean: float
    largest_difference: float
    centred_cosine_least: float
    centred_cosine_mean: float
    batch_cosine_least: float
    batch_largest_difference: float


@dataclass(frozen=True)
class Answers:
    """Shares of inputs whose nearest neighbour in the other modality is the same as in float32.

    Args:
        text_of_image: of images.
        image_of_text: of texts.
    """

    text_of_image: float
    image_of_text: float

    @property
    def least(self) -> float:
        return min(self.text_of_image, self.image_of_text)


@dataclass(frozen=True)
class Judgement:
    """A file against the model.

    Args:
        parity: of its vectors.
        answers: with float32 vectors of the other tower, or both of one file; None where there is no other.
        vectors: of the file, (N, D).
    """

    parity: Parity
    answers: Answers | None
    vectors: torch.Tensor


def cosines(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Of each row of two arrays (N, D), (N,); in float64, where 1 − 1e-9 is not 1."""
    return F.cosine_similarity(wanted.double(), found.double(), dim=-1, eps=1e-30)


def compare(wanted: torch.Tensor, found: torch.Tensor, alone: torch.Tensor) -> Parity:
    """
    Args:
        wanted: (N, D) at unit length, of the model.
        found: (N, D) of the file, computed together.
        alone: of the file, some of the first, each computed by itself.
    """
    mean, same = wanted.double().mean(dim=0), found[: len(alone)]
    plain, centred = cosines(wanted, found), cosines(wanted.double() - mean, found.double() - mean)
    return Parity(
        inputs=len(wanted),
        cosine_least=float(plain.min()),
        cosine_mean=float(plain.mean()),
        largest_difference=float((wanted - found).abs().max()),
        centred_cosine_least=float(centred.min()),
        centred_cosine_mean=float(centred.mean()),
        batch_cosine_least=float(cosines(same, alone).min()),
        batch_largest_difference=float((same - alone).abs().max()),
    )


def compare_answers(wanted: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]) -> Answers:
    """
    Args:
        wanted, found: images (N, D) and texts (M, D) at unit length, of the model and of the files.
    """
    ours, theirs = (images @ texts.t() for images, texts in (wanted, found))
    rows, columns = (float((ours.argmax(dim) == theirs.argmax(dim)).float().mean()) for dim in (1, 0))
    return Answers(text_of_image=rows, image_of_text=columns)
