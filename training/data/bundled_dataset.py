"""What a dataset that comes with the package says of itself, so that nobody has to know it by name."""

from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset

from modeling_siglip_ext.evaluation.metrics.zero_shot import ForcedChoiceTask, ZeroShotTask


@dataclass(frozen=True)
class BundledDataset:
    """A dataset that a recipe gives by its name alone.

    Args:
        name: as a recipe writes it (`dataset: emoji`).
        id: for model cards; it is on no hub, hence without a slash.
        title: for people, after "trained on".
        summary: a sentence of a model card about what held-out figures on it measure.
        limits: the section of a model card about what a model trained on it is not for.
        languages: codes of the languages whose captions it has, each in the column of that name.
        load: rows of the split "train" or "test", with every caption column.
        tasks: zero-shot tasks on rows of it.
    """

    name: str
    id: str
    title: str
    summary: str
    limits: str
    languages: tuple[str, ...]
    load: Callable[[str], Dataset]
    tasks: Callable[[Dataset], list[ZeroShotTask | ForcedChoiceTask]]
