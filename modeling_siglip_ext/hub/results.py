"""Figures of a model, and the two forms in which the Hub takes them: `model-index` metadata and `.eval_results/`."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..files import write_text


EVAL_RESULTS = ".eval_results"
MEASURED, PUBLISHED = "siglip-ext-measured.yaml", "siglip-ext-published.yaml"
CONTRASTIVE, CLASSIFICATION = "zero-shot-image-classification", "image-classification"
TASKS = {  # the Hub's name of the task, and one for a reader
    "zero-shot": (CONTRASTIVE, "Zero-shot classification"),
    "retrieval": (CONTRASTIVE, "Image-text retrieval"),
    "multilingual-retrieval": (CONTRASTIVE, "Image-text retrieval, mean over languages"),
    "few-shot": (CLASSIFICATION, "Few-shot classification"),
    "linear-probe": (CLASSIFICATION, "Linear probe"),
    "knn": (CLASSIFICATION, "k nearest neighbours"),
    "threshold": (CONTRASTIVE, "Matching of images and texts"),
}
SHARES = ("accuracy", "recall", "precision", "f1", "roc_auc")


def is_share(metric: str) -> bool:
    """Whether a metric is a share between 0 and 1, by its name."""
    return any(word in metric for word in SHARES)


@dataclass(frozen=True)
class Figure:
    """One figure of a model.

    Args:
        label: what a reader calls it, e.g. "image→text R@1".
        metric: identifier for the metadata, e.g. "image_to_text_recall@1".
        value: the figure; shares are between 0 and 1.
        chance: what guessing gives, where that is known.
        percent: whether the card shows `value` and `chance` in percent.
    """

    label: str
    metric: str
    value: float
    chance: float | None = None
    percent: bool = True

    def text(self, value: float | None) -> str:
        """`value` as the card shows it."""
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Results:
    """Figures on one dataset, measured here or published elsewhere.

    Args:
        dataset: its name for a reader.
        dataset_id: its name on the Hub ("user/name"), or a short name of its own.
        figures: at least one.
        task: the Hub's name of the task.
        task_name: the same for a reader.
        split: the part of the dataset.
        config: which of several datasets of this name, a language say.
        source: name and address of the publication; None for what was measured with this package on these weights.
        date: when it was measured, ISO 8601.
        note: how it was measured.

    Raises:
        ValueError: a figure without a dataset, or no figure.
    """

    dataset: str
    dataset_id: str
    figures: tuple[Figure, ...]
    task: str = "zero-shot-image-classification"
    task_name: str = "Zero-shot classification and image-text retrieval"
    split: str | None = None
    source: tuple[str, str] | None = None
    date: str | None = None
    note: str = ""
    config: str | None = None

    def __post_init__(self) -> None:
        if not self.dataset or not self.dataset_id:
            raise ValueError("a figure says nothing without the dataset it was measured on: give its name and id")
        if not self.figures:
            raise ValueError(f"results on {self.dataset} without a figure")

    @property
    def key(self) -> str:
        """What a newer measurement of the same replaces."""
        which = [self.dataset_id, *([self.config] if self.config else [])]
        kinds = sorted({figure.metric for figure in self.figures})
        return re.sub(r"[^\w@.-]+", "-", "-".join([*which, self.split or "", *kinds[:1]]))


def eval_results(results: Results) -> list[EvalResult]:
    """The figures as the metadata holds them.

    The format has one source for all figures of a dataset and split; published ones therefore stand under a split of
    their own, or they would pass for measured ones.
    """
    published = results.source is not None
    source_name, source_url = results.source or (None, None)
    return [
        EvalResult(
            task_type=results.task,
            task_name=results.task_name,
            dataset_type=results.dataset_id,
            dataset_config=results.config,
            dataset_name=f"{results.dataset}, as published" if published else results.dataset,
            dataset_split=" ".join(filter(None, (results.split, "(published)"))) if published else results.split,
            metric_type=figure.metric,
            metric_name=figure.label,
            metric_value=round(figure.value, 6),
            # the format has no other room for what guessing gives
            metric_args=None if figure.chance is None else {"chance": round(figure.chance, 6)},
            source_name=source_name,
            source_url=source_url,
        )
        for figure in results.figures
    ]


def eval_result_entries(results: Results) -> list[EvalResultEntry]:
    """The figures as `.eval_results/` holds them; none for a dataset that is not on the Hub."""
    if "/" not in results.dataset_id:
        return []
    source_name, source_url = results.source or (None, None)
    if results.source is None:
        notes = f"measured with siglip-ext {metadata.version('siglip-ext')}"
    else:
        notes = "published by the authors, not measured with this copy of the weights"
    return [
        EvalResultEntry(
            dataset_id=results.dataset_id,
            task_id=figure.metric,
            value=round(figure.value, 6),
            date=results.date,
            source_name=source_name,
            source_url=source_url,
            notes=f"{notes}; {results.split}" if results.split else notes,
        )
        for figure in results.figures
    ]


def write_eval_results(path: Path, results: Sequence[Results], *, keep: bool = False) -> None:
    """Write one file of `.eval_results/`; without entries for it the file is removed.

    Args:
        keep: keep the file's entries of other datasets and tasks.
    """
    entries = eval_result_entries_to_yaml([entry for one in results for entry in eval_result_entries(one)])
    if keep and path.is_file():
        new = [entry["dataset"] for entry in entries]
        entries = [old for old in yaml.safe_load(path.read_text("utf-8")) if old["dataset"] not in new] + entries
    if not entries:
        path.unlink(missing_ok=True)
        return
    write_text(path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
