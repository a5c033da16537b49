"""How far a run has come in its data: what was skipped, and where each worker of a stream is."""

from collections.abc import Sequence

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .samples import LISTED, SkipCounter
from .streaming import ImageTextStream


class DataProgress(TrainerCallback):
    """Takes note of every batch that is about to be trained; saved and loaded with a checkpoint.

    Args:
        max_bad_fraction: see `SkipCounter`.
        workers: dataloader workers, which a resumed stream must have again.
    """

    def __init__(self, max_bad_fraction: float, workers: int):
        self.skips = SkipCounter(max_bad_fraction)
        self.workers = workers
        self.positions: dict[int, tuple[int, int]] = {}
        self.resumed_workers: int | None = None

    def take(self, batch: dict) -> list:
        """Take out of a batch what `ReportingCollator` wrote into it; the names of its samples.

        Raises:
            TooManyBadSamples: with the list.
        """
        report = batch.pop("samples", None)
        if report is None:
            return []
        self.skips.add(report["read"], report["skipped"])
        if report["position"] is not None:
            worker, *position = report["position"]
            self.positions[worker] = tuple(position)
        return report["names"]

    def state(self) -> dict:
        return {"skips": self.skips.state(), "workers": self.workers, "positions": sorted(self.positions.items())}

    def load(self, state: dict) -> None:
        self.skips.load(state["skips"])
        self.positions = {worker: tuple(position) for worker, position in state["positions"]}
        self.resumed_workers = state["workers"]

    def merged(self, states: Sequence[dict], process: int) -> dict:
        """What the first process counts from then on is all that was counted; a stream must keep its processes."""
        skips = [state["skips"] for state in states if process == 0]
        listed = [entry for each in skips for entry in each["skipped"]]
        counted = {name: sum(each[name] for each in skips) for name in ("read", "total_skipped")}
        return {"skips": {**counted, "skipped": listed[:LISTED]}, "workers": self.workers, "positions": []}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        """After `load`: let a stream go on where the checkpoint's stopped.

        Raises:
            ValueError: for another number of workers.
        """
        saved, self.resumed_workers = self.resumed_workers, None
        stream = getattr(train_dataloader, "dataset", None)
        if saved is None or args.ignore_data_skip or not isinstance(stream, ImageTextStream):
            return
        if saved != self.workers:
            raise ValueError(
                f"the checkpoint's stream was read by dataloader_num_workers={saved}, not {self.workers}: "
                "set the same number to continue where it stopped"
            )
        stream.resume(self.positions, state.global_step * args.gradient_accumulation_steps)
