"""Endless training data that is read in order: Hub streams and tar shards, split without overlap, resumed exactly.

A stream has no length and no index. Each worker of each process reads its own part, pass after pass; what it read is
counted before decoding, so that a resumed run goes through the same rows undecoded and continues with the next one.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Protocol

from datasets import Dataset
from datasets import IterableDataset as HubIterable
from torch.utils.data import IterableDataset, get_worker_info
from transformers import BaseImageProcessor

from modeling_siglip_ext.evaluation.data.samples_of_members import DROPPED
from modeling_siglip_ext.images import load_image
from modeling_siglip_ext.inputs import undecoded

from .lengths import check_takes_lengths, drawn_length
from .pixels import resized_sample, sample_shape
from .regions import check_regions
from .samples import BAD_SAMPLE, TooManyBadSamples, UnusableRowError, as_captions, drawn


# So many unusable rows in a row are no accident: a pass over all of them may take hours.
MOST_SKIPPED = 1000
ROWS_AT_ONCE = 16


class Source(Protocol):
    """Where a stream reads its rows, undecoded."""

    def rows(self, part: int, parts: int, order: int) -> Iterator[tuple[str, dict]]:
        """(name, row) of one of `parts` disjoint parts, which together are the whole; `order` is the pass."""


class HubSource:
    """Rows of a streaming `datasets` dataset (`load_dataset(..., streaming=True)`)."""

    def __init__(self, dataset: HubIterable, image_column: str):
        self.dataset = undecoded(dataset, image_column)

    def rows(self, part: int, parts: int, order: int) -> Iterator[tuple[str, dict]]:
        if self.dataset.num_shards >= parts:
            own = self.dataset.shard(num_shards=parts, index=part, contiguous=False)
            for number, row in enumerate(rows_of(own, order)):
                yield f"row {number} of part {part}/{parts}", row
        else:
            for number, row in enumerate(rows_of(self.dataset, order)):
                if number % parts == part:
                    yield f"row {number}", row


def rows_of(dataset: HubIterable, order: int) -> Iterator[dict]:
    """All rows of a streaming dataset, in the order of a pass.

    Its own iterator would give a worker of a loader the worker's share alone, of what may be a share already; its
    batches do not ask.
    """
    dataset.set_epoch(order)
    for batch in dataset.iter(batch_size=ROWS_AT_ONCE):
        names = list(batch)
        for values in zip(*batch.values()):
            yield dict(zip(names, values))


class ImageTextStream(IterableDataset):
    """Batches of images and captions from a source without index, for `SiglipExtTrainer`; it never ends.

    Each pass over the source has its own order where the source can shuffle (shards do), and rows pass through a
    buffer from which they are drawn at random. Order and captions depend on (seed, pass, part) alone. Bad samples are
    skipped; the Trainer counts them.

    Args:
        source: a `Source`, or a streaming `datasets` dataset.
        image_column: name of the image in a row: encoded bytes, a `datasets` image, or a PIL image.
        caption_column: name of the captions, or several names; values as for `ImageTextDataset`.
        image_processor: resizes images in the worker, to uint8.
        naflex_lengths, upscale: as for `ImageTextDataset`.
        shuffle_buffer: rows of the buffer, undecoded; 1 keeps the order of the source.
        seed: of buffer and captions.
        pair_column, region_column: names of pair ids and of regions in a row; see `ImageTextDataset`.

    Raises:
        TypeError: the source is none.

    Example:
        stream = ImageTextStream(TarShards("shards/train-{0000..0127}.tar"), image_processor=processor.image_processor)
    """

    def __init__(
        self,
        source: Source | HubIterable,
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        *,
        image_processor: BaseImageProcessor | None = None,
        naflex_lengths: Sequence[int] | None = None,
        upscale: bool = True,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        pair_column: str | None = None,
        region_column: str | None = None,
    ):
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}")
        self.source = HubSource(source, image_column) if isinstance(source, HubIterable) else source
        if not callable(getattr(self.source, "rows", None)):
            remedy = "choose one of its splits, or read shards with TarShards"
            if isinstance(source, Dataset):
                remedy = "it has an index, so give it to ImageTextDataset"
            raise TypeError(
                "ImageTextStream takes a streaming dataset of datasets or a source such as TarShards, got a "
                f"{type(source).__name__}: {remedy}"
            )
        self.image_column = image_column
        self.caption_columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_takes_lengths(naflex_lengths, image_processor, upscale)
        self.naflex_lengths, self.upscale = naflex_lengths, upscale
        self.image_processor = image_processor if sample_shape(image_processor) else None
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.pair_column, self.region_column = pair_column, region_column
        self.rank, self.world_size, self.batch_size, self.workers = 0, 1, 1, 0
        self._positions: dict[int, tuple[int, int]] = {}
        self._replayed = 0

    def assign(self, rank: int, world_size: int, batch_size: int, workers: int) -> None:
        """Say which part of the data this process reads, and in batches of what size."""
        self.rank, self.world_size, self.batch_size, self.workers = rank, world_size, batch_size, workers

    def resume(self, positions: dict[int, tuple[int, int]], batches: int) -> None:
        """Continue where an earlier run stopped.

        Args:
            positions: for each worker its pass and the rows it had read of it.
            batches: batches that run had trained on. As many empty ones come first; whoever resumes drops them.
        """
        self._positions, self._replayed = positions, batches

    def __iter__(self) -> Iterator[list[dict] | None]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A loader takes batches from its workers in turn.
        for _ in range(worker, self._replayed, workers):
            yield None
        samples = self._samples(worker, self.rank * workers + worker, self.world_size * workers)
        first = worker + workers * len(range(worker, self._replayed, workers))
        for number in count(first, workers):
            length = drawn_length(self.naflex_lengths, self.seed, str(number)) if self.naflex_lengths else None
            yield [self._resized(next(samples), length) for _ in range(self.batch_size)]

    def _resized(self, sample: dict, length: int | None) -> dict:
        image = resized_sample(sample["image"], self.image_processor, length, self.upscale)
        return {**image, **{name: value for name, value in sample.items() if name != "image"}}

    def _samples(self, worker: int, part: int, parts: int) -> Iterator[dict]:
        first, already_read = self._positions.get(worker, (0, 0))
        skipped: list[tuple[str, str]] = []
        for order in count(first):
            rows = shuffled(
                self.source.rows(part, parts, order), self.shuffle_buffer, f"{self.seed}/{order}/{part}/{parts}"
            )
            good = read = 0
            for read, (name, row) in enumerate(rows, start=1):
                if order == first and read <= already_read:
                    continue
                try:
                    sample = self._decode(row, f"{self.seed}/{order}/{name}")
                except BAD_SAMPLE as error:
                    skipped.append((name, str(error)))
                    if len(skipped) >= MOST_SKIPPED and not good and not (order == first and already_read):
                        raise TooManyBadSamples(_nothing_usable(part, parts, len(skipped), skipped)) from error
                    continue
                good += 1
                note = {"name": name, "read": 1 + len(skipped), "skipped": skipped}
                skipped = []
                yield {**sample, "sample": {**note, "position": (worker, order, read)}}
            if not good and not (order == first and already_read):
                raise TooManyBadSamples(_nothing_usable(part, parts, read, skipped))

    def _decode(self, row: dict, key: str) -> dict:
        if DROPPED in row:
            raise UnusableRowError(row[DROPPED])
        names = (self.image_column, *self.caption_columns, self.pair_column, self.region_column)
        missing = [name for name in names if name is not None and name not in row]
        if missing:
            raise UnusableRowError(f"the row has no {missing[0]!r}, only {', '.join(map(repr, row))}")
        values = [row[name] for name in self.caption_columns]
        caption = drawn(as_captions(values if len(values) > 1 else values[0]), key)
        image = load_image(row[self.image_column])
        sample = {"caption": caption, "key": key}
        if self.pair_column is not None:
            sample["pair"] = row[self.pair_column]
        if self.region_column is not None:
            check_regions(row[self.region_column])
            sample["regions"] = row[self.region_column]
        return {"image": image, **sample}


def _nothing_usable(part: int, parts: int, read: int, skipped: Sequence[tuple[str, str]]) -> str:
    """Why a part of a stream cannot be trained on."""
    if read:
        examples = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        return f"none of the {read} rows that were read is usable; the first of them: {examples}"
    if parts == 1:
        return "the stream has no rows"
    return f"part {part} of {parts} of the stream has 0 rows. Use fewer dataloader workers or processes, or more data"


def shuffled(rows: Iterable, size: int, seed: str) -> Iterator:
    """Rows in an order drawn from a buffer of `size`; the same for the same seed."""
    draw, buffer = random.Random(seed), []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        place = draw.randrange(size)
        buffer[place], row = row, buffer[place]
        yield row
    draw.shuffle(buffer)
    yield from buffer
