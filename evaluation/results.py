"""The result of an evaluation: one JSON file a run, with all that is needed to repeat it, and several side by side."""

import datetime
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.hub.results import is_share

from .data import Provenance


PACKAGES = ("siglip-ext", "torch", "transformers", "datasets", "numpy", "pillow", "scikit-learn")
Part = TypeVar("Part", bound="EvaluatedModel | Counts | Provenance | Result")


@dataclass(frozen=True)
class EvaluatedModel:
    """Which model it was.

    Args:
        name: on the Hub, or its folder.
        weights: a hash of all of them; None where it was not taken.
        revision: on the Hub.
        class_name: of the Python class.
        dtype: of the weights, "float32".
    """

    name: str
    weights: str | None = None
    revision: str | None = None
    class_name: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Counts:
    """How much of the data counted; None where it has no meaning.

    Args:
        evaluated: images.
        texts: captions of these images.
        unreadable: rows whose image could not be read.
        without_label: rows without a right class.
        languages: images by language.
        pairs, matched: pairs that a threshold was chosen on, and how many of them belong together.
        train_rows, test_rows, train_unreadable, test_unreadable: of a probe.
    """

    evaluated: int | None = None
    texts: int | None = None
    unreadable: Sequence[int] | None = None
    without_label: int | None = None
    languages: Mapping[str, int] | None = None
    pairs: int | None = None
    matched: int | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    train_unreadable: Sequence[int] | None = None
    test_unreadable: Sequence[int] | None = None


@dataclass(frozen=True)
class Result:
    """What was measured, on what and how.

    Args:
        task: "zero-shot", "retrieval", ...
        metrics: name to value; shares are between 0 and 1.
        model: None for figures of embeddings alone.
        dataset: where the rows are from; None where they were given without.
        counts: how many of them counted.
        settings: what the figures depend on besides.
        train: where a probe's training rows are from.
        groups: of duplicates.
        device, processes, seconds: what it was computed with, and how long it took.
        command, versions, date: filled when it is written.
        predictions: the class put first for each row, -1 where the row did not count. Not written.
    """

    task: str
    metrics: Mapping[str, Any]
    model: EvaluatedModel | None = None
    dataset: Provenance | None = None
    counts: Counts = Counts()
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Provenance | None = None
    groups: Sequence[Mapping[str, Any]] | None = None
    device: str | None = None
    processes: int | None = None
    seconds: float | None = None
    command: Sequence[str] | None = None
    versions: Mapping[str, str] | None = None
    date: str | None = None
    predictions: Sequence[int] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The content of a result file."""
        content = asdict(replace(self, predictions=None))
        counts, train = content.pop("counts"), content.pop("train")
        if self.model is not None:
            content["model"]["class"] = content["model"].pop("class_name")
        content["dataset"] = {**(content["dataset"] or {}), **without_none({**counts, "train": train})}
        return without_none(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """The result that a file's content says; what an older file lacks is None."""
        model, dataset = content.get("model"), content.get("dataset") or {}
        parts = {
            "model": None if model is None else known(EvaluatedModel, {**model, "class_name": model.get("class")}),
            "dataset": known(Provenance, dataset) if "source" in dataset else None,
            "counts": known(Counts, dataset),
            "train": known(Provenance, dataset["train"]) if "train" in dataset else None,
        }
        return known(cls, {**content, **parts})


def without_none(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}


def known(kind: type[Part], content: Mapping[str, Any]) -> Part:
    """A dataclass from those of the keys that it has."""
    return kind(**{one.name: content[one.name] for one in fields(kind) if one.name in content})


def versions() -> dict[str, str]:
    """Of Python and the packages that figures may depend on."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            result[package] = "not installed"
    return result


def write_result(path: str | Path, result: Result) -> Path:
    """Write a result with the command, the versions and the date; returns the path."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, replace(result, command=sys.argv[1:], versions=versions(), date=now).to_json())
    return Path(path)


def read_results(paths: Sequence[str | Path]) -> dict[Path, Result]:
    """The results among and below the given paths, in order.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: there are none, or a file that is no JSON.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} is no result and no folder of results: there is no such file")
        files += sorted(path.rglob("*.json")) if path.is_dir() else [path]
    results = {}
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if isinstance(content, dict) and {"task", "metrics"} <= content.keys():
            try:
                results[path] = Result.from_json(content)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no result of siglip-ext-eval: {error}") from error
    if not results:
        raise ValueError(f"no results in {', '.join(map(str, paths))}")
    return results


def compare(paths: Sequence[str | Path]) -> str:
    """Markdown: a table for every task and dataset, a line for every metric, a column for every run.

    Shares are in percent. Runs that differ in settings have a note of the differences under the table.
    """
    groups: dict[tuple[str, str], dict[Path, Result]] = {}
    for path, result in read_results(paths).items():
        dataset = result.dataset or Provenance("")
        name = f"{dataset.benchmark or dataset.source} {dataset.split or ''}".strip()
        groups.setdefault((result.task, name), {})[path] = result
    lines = ["# Results"]
    for (task, dataset_name), of_path in sorted(groups.items(), key=lambda group: group[0]):
        names, results = column_names(of_path), list(of_path.values())
        keys = dict.fromkeys(key for result in results for key, v in result.metrics.items() if is_number(v))
        lines += ["", f"## {task}: {dataset_name}", "", f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for key in keys:
            values = [result.metrics.get(key) for result in results]
            lines.append(f"| {key} | {' | '.join(show(key, value) for value in values)} |")
        for key in sorted({key for result in results for key in result.settings}):
            values = [result.settings.get(key) for result in results]
            if any(value != values[0] for value in values):
                lines += ["", f"{key} differs: " + "; ".join(f"{n}: {v}" for n, v in zip(names, values))]
    return "\n".join(lines) + "\n"


def column_names(results: Mapping[Path, Result]) -> list[str]:
    """Short names of the models; where they are the same with the folder of the result, or its date."""
    names = ["?" if one.model is None else one.model.name.rstrip("/").split("/")[-1] for one in results.values()]
    folders = [path.resolve().parent.name for path in results]
    dates = [result.date or "?" for result in results.values()]
    for details in (folders, dates):
        if len(set(names)) == len(names):
            break
        detailed = [f"{name} ({detail})" for name, detail in zip(names, details)]
        names = detailed if details is dates or len(set(detailed)) == len(names) else names
    return names


def is_number(value: Any) -> bool:
    """Whether a metric is one figure, and not figures by language."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def at_length(key: str, length: int) -> str:
    """A metric's name where figures differ in the number of patches of an image."""
    return f"{key} at {length} patches"


def show(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if is_share(key) else f"{value:.4g}"
