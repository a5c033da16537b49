"""Which epoch begins, told to dataset and samplers, which draw another order and other captions in each."""

from collections.abc import Callable

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .grouped_sampler import GroupedSampler
from .loaders import PlainLoader


class Epochs(TrainerCallback):
    """Tells them by itself.

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
        told = [getattr(loader, "dataset", None), loader if isinstance(loader, PlainLoader) else None, self.sampler]
        for part in told:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
