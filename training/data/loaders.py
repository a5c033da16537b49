"""Loaders that hold one batch at a time, and the epoch told to what they read.

accelerate's loader reads a batch ahead and moves it to the device. With a gradient cache a batch is large, and belongs
on the host; and a stream that is to resume exactly must know which batch was trained last.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .collating import parts_of
from .grouped_sampler import GroupedSampler
from .lengths import BatchesOfLengths
from .samples import ReportingCollator
from .streaming import ImageTextStream


class PlainLoader(DataLoader):
    """A torch `DataLoader` that passes the epoch on to its samplers."""

    def set_epoch(self, epoch: int) -> None:
        part = self.batch_sampler
        while part is not None:
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)
            part = getattr(part, "batch_sampler", None) or getattr(part, "sampler", None)


def _same_workers(loader: DataLoader) -> dict:
    names = ("num_workers", "pin_memory", "worker_init_fn", "multiprocessing_context", "persistent_workers")
    settings = {name: getattr(loader, name) for name in names}
    return settings | ({"prefetch_factor": loader.prefetch_factor} if loader.num_workers else {})


def one_batch_at_a_time(loader: DataLoader, lengths: Sequence[int] | None = None, seed: int = 0) -> PlainLoader:
    """The same batches for this process as a loader that accelerate has prepared, kept on the host.

    Args:
        lengths, seed: see `BatchesOfLengths`, which the dataset then must know of.
    """
    batches: Any = loader.batch_sampler
    if lengths is not None:
        batches = BatchesOfLengths(batches, lengths, seed)
    return PlainLoader(loader.dataset, batch_sampler=batches, collate_fn=loader.collate_fn, **_same_workers(loader))


def stream_loader(
    stream: ImageTextStream, batch_size: int, collator: ReportingCollator, rank: int, world_size: int, **workers
) -> DataLoader:
    """Batches of this process's part of a stream; the stream makes the batches, the workers collate them."""
    stream.assign(rank, world_size, batch_size, workers.get("num_workers", 0))
    return DataLoader(stream, batch_size=None, collate_fn=collator, **workers)


class Epochs(TrainerCallback):
    """Tells dataset and samplers, which draw other captions and another order in each epoch, by itself.

    accelerate does so for its own loaders in one process, but does not reach the dataset under DDP, nor the samplers
    once batches have been skipped.

    Args:
        on_the_host: the loader that has the dataset, of the one that training reads.
    """

    def __init__(self, on_the_host: Callable[[DataLoader], DataLoader]):
        self.on_the_host = on_the_host
        self.sampler: GroupedSampler | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        epoch = int(state.epoch or 0)
        loader = self.on_the_host(kwargs["train_dataloader"])
        told = [*parts_of(getattr(loader, "dataset", None)), self.sampler]
        if isinstance(loader, PlainLoader):
            told.append(loader)
        for part in told:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
