"""Images and captions of a map-style `datasets` dataset, for training and for evaluation.

`ImageTextDataset` chooses one caption per image and epoch and keeps resized images in memory where they fit; decoding
and resizing at every epoch would cost more than a small model's training step. Samples that cannot be used are skipped
and counted (`samples.py`).
"""

import os
from collections.abc import Mapping, Sequence
from itertools import repeat

import torch
from datasets import Dataset
from PIL.Image import Image
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from modeling_siglip_ext.encoding import ahead
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.inputs import undecoded

from .folder import check_columns, check_map_style
from .lengths import Index, check_takes_lengths
from .pixel_cache import Cache, new_cache
from .pixels import resized_sample, sample_shape
from .reference_embeddings import REFERENCE, ReferenceEmbeddings
from .regions import check_regions
from .samples import BAD_SAMPLE, LISTED, SkipCounter, UnusableRowError, as_captions, drawn


class CaptionedRows(torch.utils.data.Dataset):
    """The captions of a dataset by index, of which every epoch draws one.

    Args:
        dataset, caption_column, seed: as for `ImageTextDataset`.
        unusable: rows that are left out whatever their captions, and why.
        called: what a row is called where it is left out, before its number.
        numbers: for each row its number there; its place by default.
        pair_column, region_column, reference: as for `ImageTextDataset`.
    """

    def __init__(
        self,
        dataset: Dataset,
        caption_column: str | Sequence[str],
        seed: int,
        unusable: dict[int, str] | None = None,
        called: str = "example",
        numbers: Sequence[int] | None = None,
        pair_column: str | None = None,
        region_column: str | None = None,
        reference: ReferenceEmbeddings | None = None,
    ):
        columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_columns(dataset.column_names, "caption_column", columns)
        for setting, column in (("pair_column", pair_column), ("region_column", region_column)):
            if column is not None:
                check_columns(dataset.column_names, setting, [column])
        self.pair_column = pair_column
        self._pairs = None if pair_column is None else dataset[pair_column]
        self.regions = None if region_column is None else dataset[region_column]
        """Those of each row of `dataset`."""
        self.seed = seed
        self._called, self._numbers = called, range(len(dataset)) if numbers is None else list(numbers)
        self.reference = reference
        if reference is not None:
            lacking = (row for row, number in enumerate(self._numbers) if number in reference.unreadable)
            unusable = {**(unusable or {}), **dict.fromkeys(lacking, "its image could not be read for the reference")}
        self.captions: list[list[str]] = []
        self.rows: list[int] = []
        """For each index the row of `dataset`."""
        self.left_out: list[tuple[str, str]] = []
        captions = zip(*(dataset[column] for column in columns))
        # one after another, as a row by itself takes much longer to find
        for row, (values, regions) in enumerate(zip(captions, repeat(None) if self.regions is None else self.regions)):
            try:
                if unusable and row in unusable:
                    raise UnusableRowError(unusable[row])
                check_regions(regions)
                self.captions.append(as_captions(values if len(values) > 1 else values[0]))
                self.rows.append(row)
            except UnusableRowError as error:
                self.left_out.append((self._name(row), f"{error}{self._of(row)}"))
        self.owners = self.rows
        """For each index the row of `dataset` that has its captions."""
        # In shared memory, so that persistent dataloader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def _of(self, row: int) -> str:
        """What a reason says of the row behind it."""
        return ""

    def set_epoch(self, epoch: int) -> None:
        """Choose the captions of another epoch."""
        self._epoch.fill_(epoch)

    def _name(self, row: int) -> str:
        return f"{self._called} {self._numbers[row]}"

    def first_left_out(self) -> str:
        """The first row that is left out and why, for the end of a message; nothing where there is none."""
        return "" if not self.left_out else f"; {self.left_out[0][0]}: {self.left_out[0][1]}"

    def __len__(self) -> int:
        return len(self.captions)

    def key(self, index: int) -> str:
        """What all that is random in a sample is drawn from, in this epoch."""
        return f"{self.seed}/{self._epoch.item()}/{index}"

    def caption(self, index: int) -> str:
        """The caption of this epoch."""
        return drawn(self.captions[index], self.key(index))

    def further(self, index: int) -> dict:
        """`pair` and `regions`, the values of their columns, where there are such columns; and what the reference, if
        there is one, makes of image and caption."""
        # what is shuffled with the captions is all that an image is said to show
        columns = {"pair": (self._pairs, self.rows), "regions": (self.regions, self.owners)}
        found = {name: column[rows[index]] for name, (column, rows) in columns.items() if column is not None}
        if self.reference is not None:
            image, owner = (self._numbers[rows[index]] for rows in (self.rows, self.owners))
            caption = drawn(range(len(self.captions[index])), self.key(index))
            found[REFERENCE] = self.reference.of(image, owner, caption)
        return found


class ImageTextDataset(CaptionedRows):
    """One image and one caption per index.

    Where an example has several captions, one is drawn per epoch from a hash of (seed, epoch, index): the draw is the
    same for any number of processes and workers, and after a resume.

    Bad examples: one without a caption, or with a caption that is neither a string nor a list nor a mapping of
    strings, is left out from the start. An image that cannot be decoded is left out when images are cached, or by
    `leave_out_unreadable`; otherwise it is replaced by the next good one whenever it comes up. `SiglipExtTrainer`
    counts and reports these, and calls `leave_out_unreadable` for what it evaluates.

    Args:
        dataset: a map-style `datasets.Dataset`.
        image_column: column of images; never decoded by `datasets` itself.
        caption_column: column of captions, or several such columns, e.g. one a language. Each value is a string, a
            list of strings, or a mapping from languages to either. Empty captions and None are skipped.
        image_processor: if given, images are resized by it to uint8, once if all of them fit `cache_gib`.
        naflex_lengths: with a NaFlex image processor: patches of an image at most, one of these numbers for each batch
            (`lengths.py`); by default the image processor's.
        upscale: with a NaFlex image processor: False leaves an image of fewer patches its own instead of enlarging it.
        cache_gib: limit of that cache in GiB; 0 turns it off.
        seed: of the caption draw and of `shuffle_captions`.
        shuffle_captions: give every image the captions of another one. A control: nothing can be learnt from it.
        group_column: column that says which examples are variants of one thing; `groups` then has it for each index,
            and `SiglipExtTrainer` puts variants into one batch.
        region_column: column of lists of {box, text, score}, what a captioning decoder learns besides captions.
        pair_column: column of pair ids: images and texts of examples with equal values belong together, as positives.
        reference: what a reference model makes of all images and captions, for `Curation`. Examples whose image it
            could not see are left out.
        max_bad_fraction: largest share of examples that may be left out here. 0 makes any bad example an error, also
            later on.
        skips: counts what is left out, in place of a counter of its own: of several parts of one dataset.
        called, numbers: what an example is called where it is left out; see `CaptionedRows`.

    Raises:
        TypeError: `dataset` is no map-style dataset of `datasets`.
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
        naflex_lengths: Sequence[int] | None = None,
        upscale: bool = True,
        cache_gib: float = 2.0,
        seed: int = 0,
        shuffle_captions: bool = False,
        group_column: str | None = None,
        pair_column: str | None = None,
        region_column: str | None = None,
        reference: ReferenceEmbeddings | None = None,
        max_bad_fraction: float = 0.01,
        skips: SkipCounter | None = None,
        called: str = "example",
        numbers: Sequence[int] | None = None,
    ):
        check_map_style(dataset)
        check_columns(dataset.column_names, "image_column", [image_column])
        check_takes_lengths(naflex_lengths, image_processor, upscale)
        if shuffle_captions and pair_column is not None:
            raise ValueError("shuffle_captions gives images the captions of others, to which no pair_column applies")
        self.images = undecoded(dataset.select_columns([image_column]), image_column)
        self.image_column = image_column
        super().__init__(dataset, caption_column, seed, None, called, numbers, pair_column, region_column, reference)
        if group_column is not None:
            check_columns(dataset.column_names, "group_column", [group_column])
        self.skips = skips or SkipCounter(max_bad_fraction, grace=len(dataset))
        self._every_image_is_good = self.skips.limit == 0  # or must be
        self.skips.add(len(dataset), self.left_out)
        if self.left_out:
            self.images = self.images.select(self.rows)
        if shuffle_captions:
            self.captions, self.owners = (_deranged(values, seed) for values in (self.captions, self.rows))
        self.groups: list | None = None
        self.naflex_lengths, self.upscale = naflex_lengths, upscale
        self._image_processor = None if sample_shape(image_processor) is None else image_processor
        self.cache = new_cache(len(self.captions), self._image_processor, cache_gib, naflex_lengths, upscale)
        if self.cache is not None:
            self._fill(self.cache)
        if group_column is not None:
            groups = dataset[group_column]
            self.groups = [groups[row] for row in self.rows]

    def _of(self, row: int) -> str:
        if len(self.left_out) >= LISTED:
            return ""
        image = self.images[row][self.image_column]
        path = image.get("path") if isinstance(image, Mapping) else image
        return f", of {path}" if isinstance(path, str) else ""

    def leave_out_unreadable(self, part: int = 0, parts: int = 1) -> None:
        """Read every image once, and leave out the examples whose image cannot be decoded.

        Of evaluation, which must see each example once and no other in its place. From now on an image that cannot be
        read is an error.

        Args:
            part, parts: process and number of processes of the default process group, which then share the work; to be
                called in all of them.

        Raises:
            TooManyBadSamples: with the list.
        """
        if self.cache is None and not self._every_image_is_good:
            own = range(part, len(self), parts)
            images = (self.images[index][self.image_column] for index in own)
            workers = min(8, os.cpu_count() or 1)
            reasons = ahead(_unreadable, images, workers, 4 * workers)
            reasons = tqdm(reasons, total=len(own), desc="reading held-out images", leave=False)
            bad = {index: reason for index, reason in zip(own, reasons) if reason is not None}
            if parts > 1:
                found: list[dict[int, str]] = [{}] * parts
                torch.distributed.all_gather_object(found, bad)
                bad = {index: reason for some in found for index, reason in sorted(some.items())}
            self._leave_out(bad)
        self._every_image_is_good = True

    def _leave_out(self, bad: dict[int, str]) -> None:
        """Leave out examples by index, each for a reason."""
        if not bad:
            return
        kept = [index for index in range(len(self)) if index not in bad]
        names = [(self._name(self.rows[index]), reason) for index, reason in sorted(bad.items())]
        self.left_out += names
        self.skips.add(0, names)
        self.images = self.images.select(kept)
        self.captions = [self.captions[index] for index in kept]
        self.rows, self.owners = ([rows[index] for index in kept] for rows in (self.rows, self.owners))
        if self.groups is not None:
            self.groups = [self.groups[index] for index in kept]

    def _fill(self, cache: Cache) -> None:
        """Keep every image, resized. Examples whose image is bad are left out."""
        kept, bad = 0, {}
        for index in tqdm(range(len(self.images)), desc="decoding images", leave=False):
            try:
                cache.put(kept, self._image(index))
                kept += 1
            except BAD_SAMPLE as error:
                bad[index] = str(error)
        self._leave_out(bad)

    def _image(self, index: int) -> Image:
        return load_image(self.images[index][self.image_column])

    def __getitem__(self, index: Index) -> dict:
        """`caption`; `pixels` (uint8, (3, H, W)) or `image` (PIL); `key`, of its draws; `sample`, a note on what was
        skipped for it; `pair` and `regions` with a column of them; `reference_embeds` (2, D) with a reference.

        With a NaFlex image processor `pixels` are patches (L, p·p·3), padded, and `spatial_shape` is there; L is the
        image processor's, or comes with the index.
        """
        index, length = index if isinstance(index, tuple) else (index, None)
        if self.cache is not None:
            return self._item(index, self.cache.get(index, length), [])
        skipped = []
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            try:
                image = resized_sample(self._image(candidate), self._image_processor, length, self.upscale)
                return self._item(candidate, image, skipped)
            except BAD_SAMPLE as error:
                if self._every_image_is_good:
                    raise UnusableRowError(f"{self._name(self.rows[candidate])}: {error}") from error
                skipped.append((self._name(self.rows[candidate]), str(error)))
        raise ValueError(f"none of the {len(self)} images can be decoded; the first: {skipped[0]}")

    def __getitems__(self, indices: Sequence[Index]) -> list[dict]:
        """A batch of items, whose pixels are rows of one tensor: a large batch is not held twice."""
        first = indices[0]
        shape = sample_shape(self._image_processor, first[1] if isinstance(first, tuple) else None)
        if shape is None:
            return [self[index] for index in indices]
        pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
        items = []
        for row, index in zip(pixels, indices):
            item = self[index]
            row.copy_(item["pixels"])
            items.append(item | {"pixels": row})
        return items

    def _item(self, index: int, image: dict, skipped: list[tuple[str, str]]) -> dict:
        return {
            **image,
            "caption": self.caption(index),
            "key": self.key(index),
            "sample": {"name": self.rows[index], "read": 1 + len(skipped), "skipped": skipped},
            **self.further(index),
        }


def _unreadable(image: object) -> str | None:
    """Why an image cannot be decoded; None if it can."""
    try:
        load_image(image)
    except UnreadableImageError as error:
        return str(error)
    return None


def _deranged(values: list, seed: int) -> list:
    """Values moved so that none stays in its place: along one random cycle through all of them."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).tolist()
    moved = list(values)
    for here, there in zip(order, order[1:] + order[:1]):
        moved[here] = values[there]
    return moved
