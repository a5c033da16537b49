"""Images and captions of a map-style `datasets` dataset, for training and for evaluation.

`ImageTextDataset` chooses one caption per image and epoch and keeps resized images in memory where they fit; decoding
and resizing at every epoch would cost more than a small model's training step. Samples that cannot be used are skipped
and counted (`samples.py`).
"""

from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from PIL.Image import Image
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from modeling_siglip_ext.encoding import undecoded
from modeling_siglip_ext.images import load_image

from .folder import check_columns
from .pixels import fixed_size, resized_uint8
from .samples import BAD_SAMPLE, LISTED, SkipCounter, UnusableRowError, as_captions, drawn


class CaptionedRows(torch.utils.data.Dataset):
    """The captions of a dataset by index, of which every epoch draws one.

    Args:
        dataset, caption_column, seed: as for `ImageTextDataset`.
        unusable: rows that are left out whatever their captions, and why.
    """

    def __init__(
        self, dataset: Dataset, caption_column: str | Sequence[str], seed: int, unusable: dict[int, str] | None = None
    ):
        columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_columns(dataset.column_names, "caption_column", columns)
        self.seed = seed
        self.captions: list[list[str]] = []
        self.rows: list[int] = []
        """For each index the row of `dataset`."""
        self.left_out: list[tuple[str, str]] = []
        for row, values in enumerate(zip(*(dataset[column] for column in columns))):
            try:
                if unusable and row in unusable:
                    raise UnusableRowError(unusable[row])
                self.captions.append(as_captions(values if len(values) > 1 else values[0]))
                self.rows.append(row)
            except UnusableRowError as error:
                self.left_out.append((f"example {row}", f"{error}{self._of(row)}"))
        # In shared memory, so that persistent dataloader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def _of(self, row: int) -> str:
        """What a reason says of the row behind it."""
        return ""

    def set_epoch(self, epoch: int) -> None:
        """Choose the captions of another epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int) -> str:
        """The caption of this epoch."""
        return drawn(self.captions[index], f"{self.seed}/{self._epoch.item()}/{index}")


class ImageTextDataset(CaptionedRows):
    """One image and one caption per index.

    Where an example has several captions, one is drawn per epoch from a hash of (seed, epoch, index): the draw is the
    same for any number of processes and workers, and after a resume.

    Bad examples: one without a caption, or with a caption that is neither a string nor a list nor a mapping of
    strings, is left out from the start. An image that cannot be decoded is left out when images are cached, and
    otherwise replaced by the next good one whenever it comes up. `SiglipExtTrainer` counts and reports these.

    Args:
        dataset: a map-style `datasets.Dataset`.
        image_column: column of images; never decoded by `datasets` itself.
        caption_column: column of captions, or several such columns, e.g. one a language. Each value is a string, a
            list of strings, or a mapping from languages to either. Empty captions and None are skipped.
        image_processor: if given, images are resized by it to uint8, once if all of them fit `cache_gib`.
        cache_gib: limit of that cache in GiB; 0 turns it off.
        seed: of the caption draw and of `shuffle_captions`.
        shuffle_captions: give every image the captions of another one. A control: nothing can be learnt from it.
        group_column: column that says which examples are variants of one thing; `groups` then has it for each index,
            and `SiglipExtTrainer` puts variants into one batch.
        max_bad_fraction: largest share of examples that may be left out here. 0 makes any bad example an error, also
            later on, as evaluation needs it.

    Raises:
        ValueError: for columns that are not there.
        TooManyBadSamples: a ValueError that lists the bad examples.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        *,
        image_processor: BaseImageProcessor | None = None,
        cache_gib: float = 2.0,
        seed: int = 0,
        shuffle_captions: bool = False,
        group_column: str | None = None,
        max_bad_fraction: float = 0.01,
    ):
        check_columns(dataset.column_names, "image_column", [image_column])
        self.images = undecoded(dataset.select_columns([image_column]), image_column)
        self.image_column = image_column
        super().__init__(dataset, caption_column, seed)
        if group_column is not None:
            check_columns(dataset.column_names, "group_column", [group_column])
        self.max_bad_fraction = max_bad_fraction
        self.skips = SkipCounter(max_bad_fraction, grace=len(dataset))
        self.skips.add(len(dataset), self.left_out)
        if self.left_out:
            self.images = self.images.select(self.rows)
        if shuffle_captions:
            self.captions = _deranged(self.captions, seed)
        self.pixels = None
        self._size = fixed_size(image_processor)
        self._image_processor = image_processor if self._size is not None else None
        if self._size is not None:
            height, width = self._size
            if len(self.captions) * 3 * height * width <= cache_gib * 2**30:
                self.pixels = self._decode_all(height, width)
        self.groups = None
        if group_column is not None:
            groups = dataset[group_column]
            self.groups = [groups[row] for row in self.rows]

    def _of(self, row: int) -> str:
        if len(self.left_out) >= LISTED:
            return ""
        image = self.images[row][self.image_column]
        path = image.get("path") if isinstance(image, Mapping) else image
        return f", of {path}" if isinstance(path, str) else ""

    def _decode_all(self, height: int, width: int) -> torch.Tensor:
        """Every image, resized: uint8 (N, 3, H, W). Examples whose image is bad are left out."""
        pixels = torch.empty(len(self.images), 3, height, width, dtype=torch.uint8)
        kept, skipped = [], []
        for index in tqdm(range(len(self.images)), desc="decoding images", leave=False):
            try:
                pixels[len(kept)] = torch.as_tensor(self._decode(index))
                kept.append(index)
            except BAD_SAMPLE as error:
                skipped.append((f"example {self.rows[index]}", str(error)))
        self.skips.add(0, skipped)
        if skipped:
            self.images = self.images.select(kept)
            self.captions = [self.captions[index] for index in kept]
            self.rows = [self.rows[index] for index in kept]
        return pixels[: len(kept)]

    def _decode(self, index: int) -> torch.Tensor | Image:
        image = load_image(self.images[index][self.image_column])
        return image if self._image_processor is None else resized_uint8([image], self._image_processor)[0]

    def __getitem__(self, index: int) -> dict:
        """`caption`; `pixels` (uint8, (3, H, W)) or `image` (PIL); `sample`, a note on what was skipped for it."""
        if self.pixels is not None:
            return self._item(index, self.pixels[index], [])
        skipped = []
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            try:
                return self._item(candidate, self._decode(candidate), skipped)
            except BAD_SAMPLE as error:
                if self.max_bad_fraction == 0:
                    raise ValueError(f"example {self.rows[candidate]}: {error}") from error
                skipped.append((f"example {self.rows[candidate]}", str(error)))
        raise ValueError(f"none of the {len(self)} images can be decoded; the first: {skipped[0]}")

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """A batch of items, whose pixels are rows of one tensor: a large batch is not held twice."""
        if self._size is None:
            return [self[index] for index in indices]
        pixels = torch.empty(len(indices), 3, *self._size, dtype=torch.uint8)
        items = []
        for row, index in zip(pixels, indices):
            item = self[index]
            row.copy_(item["pixels"])
            items.append(item | {"pixels": row})
        return items

    def _item(self, index: int, image: torch.Tensor | Image, skipped: list[tuple[str, str]]) -> dict:
        return {
            "pixels" if isinstance(image, torch.Tensor) else "image": image,
            "caption": self.caption(index),
            "sample": {"name": self.rows[index], "read": 1 + len(skipped), "skipped": skipped},
        }


def _deranged(captions: list[list[str]], seed: int) -> list[list[str]]:
    """Captions moved so that none stays with its image: along one random cycle through all of them."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
    moved = list(captions)
    for here, there in zip(order, order[1:] + order[:1]):
        moved[here] = captions[there]
    return moved
