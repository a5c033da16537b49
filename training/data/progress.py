"""How far a run has come in its data: what was skipped, and where each worker of a stream is."""

from .samples import SkipCounter
from .streaming import ImageTextStream


class DataProgress:
    """Takes note of every batch that is about to be trained; saved and loaded with a checkpoint.

    Args:
        max_bad_fraction: see `SkipCounter`.
        workers: dataloader workers, which a resumed stream must have again.
    """

    def __init__(self, max_bad_fraction: float, workers: int):
        self.skips = SkipCounter(max_bad_fraction)
        self.workers = workers
        self.positions: dict[int, tuple[int, int]] = {}

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

    def resume(self, stream: ImageTextStream, state: dict, batches: int) -> None:
        """Let a stream go on where the checkpoint's stopped, after `batches`.

        Raises:
            ValueError: for another number of workers.
        """
        if state["workers"] != self.workers:
            raise ValueError(
                f"the checkpoint's stream was read by dataloader_num_workers={state['workers']}, not {self.workers}: "
                "set the same number to continue where it stopped"
            )
        stream.resume(self.positions, batches)
