"""How many patches the images of a batch have at most: one length a batch, the same in all processes.

SigLIP 2's NaFlex models are trained at 128 to 1,024 patches, one number drawn for each batch (section 2.4.2). The draw
depends on the seed and the batch's number alone, so it is the same for any number of processes and workers, and after
a resume. Who reads the images must know it: the indices of a batch carry it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import BatchSampler, Sampler

from modeling_siglip_ext.image_budget import is_naflex

from .samples import drawn


Index = int | tuple[int, int]
"""A place in a dataset, or that and the most patches that its image is to have."""


def check_lengths(lengths: Sequence[int] | None, mini_batch_tokens: int | None = None) -> None:
    """
    Raises:
        ValueError: no length, one below a patch, or one that does not fit a chunk of the gradient cache.
    """
    if lengths is None:
        return
    if not lengths:
        raise ValueError("naflex_lengths is empty: give at least one number of patches, or leave it out")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"naflex_lengths are whole numbers of patches, at least 1, got {length!r}")
    if mini_batch_tokens is not None:
        check_holds(mini_batch_tokens, max(lengths))


def check_holds(mini_batch_tokens: int, length: int) -> None:
    """
    Raises:
        ValueError: one image of so many patches does not fit a chunk of the gradient cache.
    """
    if length > mini_batch_tokens:
        raise ValueError(
            f"mini_batch_tokens={mini_batch_tokens} cannot hold one image of {length} patches: raise it, or lower "
            "naflex_lengths or the image processor's max_num_patches"
        )


def check_takes_lengths(lengths: Sequence[int] | None, image_processor: Any, upscale: bool = True) -> None:
    """
    Raises:
        ValueError: lengths, or `upscale=False`, for images that an image processor does not cut into patches.
    """
    check_lengths(lengths)
    if (lengths is not None or not upscale) and not is_naflex(image_processor):
        setting = "upscale=False" if lengths is None else "naflex_lengths"
        what = "no image processor" if image_processor is None else "one that makes images of one size"
        raise ValueError(f"{setting} needs a NaFlex model and its image processor, and there is {what}")


def drawn_length(lengths: Sequence[int], seed: int, place: str) -> int:
    """The length of a batch, from the seed and what names the batch within the run."""
    return drawn(lengths, f"{seed}/{place}/length")


class BatchesOfLengths(Sampler[list[tuple[int, int]]]):
    """The batches of another sampler, each index with the length of its batch.

    Args:
        batch_sampler: gives this process's part of every global batch.
        lengths: one of them is drawn for each batch; one that stands twice in them is drawn twice as often.
        seed: of the draws.
    """

    def __init__(self, batch_sampler: BatchSampler, lengths: Sequence[int], seed: int):
        self.batch_sampler, self.lengths, self.seed = batch_sampler, lengths, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the lengths of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number, batch in enumerate(self.batch_sampler):
            length = drawn_length(self.lengths, self.seed, f"{self.epoch}/{number}")
            yield [(index, length) for index in batch]
