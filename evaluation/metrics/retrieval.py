"""Recall@k of image-text retrieval, both ways, as COCO, Flickr30k and XM3600 are reported."""

from collections.abc import Sequence

import torch


# Scores in one block: 2**24 float32 values are 64 MiB.
_BLOCK_SCORES = 2**24
# Matrix products round by position, so equal embeddings may differ by some units in the last place of a cosine.
_TIE = 1e-6


def retrieval_ranks(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: torch.Tensor | Sequence[int] | None = None,
    *,
    block_scores: int = _BLOCK_SCORES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank of the right answer to every image and to every text, counted from 0.

    An image's rank is that of its best caption among the captions of other images. Ties are ranked pessimistically:
    whatever scores as high as the right answer (within 1e-6), or is not a number, stands before it. A model that maps
    everything to one point therefore scores 0, not 1.

    Args:
        image_embeds: (N, D), normalised.
        text_embeds: (M, D), normalised.
        image_of_text: (M,) the image, 0 to N - 1, that each text describes; None where text i describes image i.
        block_scores: at most so many scores (but at least one row) are in memory at a time.

    Returns:
        (N,) ranks of images' captions among texts, (M,) ranks of texts' images among images; int64 on the CPU.

    Raises:
        ValueError: shapes or indices that do not fit, or an image without a text.
    """
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            "image_embeds and text_embeds must be (images, D) and (texts, D), "
            f"not {tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
        )
    device = image_embeds.device
    images, texts = image_embeds.float(), text_embeds.to(device).float()
    if image_of_text is None:
        if len(images) != len(texts):
            raise ValueError(
                f"{len(images)} images and {len(texts)} texts: give image_of_text, the image of each text"
            )
        owner = torch.arange(len(texts), device=device)
    else:
        owner = torch.as_tensor(image_of_text, dtype=torch.int64, device=device)
        if owner.shape != (len(texts),):
            raise ValueError(f"image_of_text has shape {tuple(owner.shape)} for {len(texts)} texts")
        if ((owner < 0) | (owner >= len(images))).any():
            raise ValueError(f"image_of_text must lie within 0 and {len(images) - 1}")
    captions = torch.bincount(owner, minlength=len(images))
    if (captions == 0).any():
        raise ValueError(f"image {int((captions == 0).nonzero()[0])} has no text")

    of_images = []
    for rows in torch.arange(len(images), device=device).split(max(1, block_scores // len(texts))):
        scores = images[rows] @ texts.T
        own = owner == rows[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        of_images.append((~(scores < best - _TIE) & ~own).sum(1).cpu())
    of_texts = []
    for rows in torch.arange(len(texts), device=device).split(max(1, block_scores // len(images))):
        scores = texts[rows] @ images.T
        own = scores.gather(1, owner[rows, None])
        # The right image is among those that do not score lower than itself.
        of_texts.append((~(scores < own - _TIE)).sum(1).cpu() - 1)
    return torch.cat(of_images), torch.cat(of_texts)


def retrieval_metrics(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: torch.Tensor | Sequence[int] | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    block_scores: int = _BLOCK_SCORES,
) -> dict[str, float]:
    """Recall@k of both directions, between 0 and 1; arguments and errors as in `retrieval_ranks`.

    Returns:
        "image_to_text_recall@k": the share of images for which one of their captions is among the first k texts, and
        "text_to_image_recall@k": the share of texts whose image is among the first k images, for each k.

    Example:
        >>> import torch
        >>> retrieval_metrics(torch.eye(3), torch.eye(3)[[0, 2, 1]], ks=(1, 2))["image_to_text_recall@1"]
        0.3333333333333333
    """
    of_images, of_texts = retrieval_ranks(image_embeds, text_embeds, image_of_text, block_scores=block_scores)
    metrics = {}
    for direction, ranks in (("image_to_text", of_images), ("text_to_image", of_texts)):
        for k in ks:
            metrics[f"{direction}_recall@{k}"] = (ranks < k).double().mean().item()
    return metrics
