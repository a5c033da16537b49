"""What a dataset says of itself, for the card and the held-out figures of what was trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from modeling_siglip_ext.evaluation.metrics.zero_shot import Task


@dataclass(frozen=True)
class DatasetFacts:
    """
    Args:
        title: what a reader calls it, after "trained on".
        id: its name on the Hub, or a name without a slash for one that is not there.
        summary: what a card should say of it beside its title.
        limits: the limits of what is trained on it alone; None where they are not known.
        languages: the caption columns that are named by the code of their language.
        tasks: zero-shot tasks over its held-out rows.
    """

    title: str
    id: str
    summary: str = ""
    limits: str | None = None
    languages: tuple[str, ...] = ()
    tasks: Callable[[Dataset], Sequence[Task]] = lambda held_out: ()
