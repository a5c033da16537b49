"""One JSON file a run, with all that is needed to repeat it; and several of them side by side as Markdown."""

import datetime
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modeling_siglip_ext.embedding_store import write_json
from modeling_siglip_ext.hub.results import is_share


PACKAGES = ("siglip-ext", "torch", "transformers", "datasets", "numpy", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_result(path: Path, task: str, metrics: Mapping[str, Any], **details: Any) -> Path:
    """Write what was measured, on what and how; `details` is model, dataset, settings and the like."""
    content = {
        "task": task,
        "metrics": dict(metrics),
        **details,
        "command": sys.argv[1:],
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(path, content)
    return path


def result_files(paths: Sequence[str | Path]) -> list[Path]:
    """The result files among and below the given paths.

    Raises:
        ValueError: there are none.
    """
    found = []
    for path in map(Path, paths):
        found += sorted(path.rglob("*.json")) if path.is_dir() else [path]
    results = [path for path in found if {"task", "metrics"} <= json.loads(path.read_text(encoding="utf-8")).keys()]
    if not results:
        raise ValueError(f"no results in {', '.join(map(str, paths))}")
    return results


def short_name(model: str) -> str:
    return model.rstrip("/").split("/")[-1]


def compare(paths: Sequence[str | Path]) -> str:
    """Markdown: a table for every task and dataset, a line for every metric, a column for every run.

    Shares are in percent. Runs that differ in settings have a note of the differences under the table.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for path in result_files(paths):
        result = json.loads(path.read_text(encoding="utf-8"))
        dataset = result.get("dataset", {})
        name = dataset.get("benchmark") or dataset.get("source", "")
        result["folder"] = path.resolve().parent.name
        groups.setdefault((result["task"], f"{name} {dataset.get('split') or ''}".strip()), []).append(result)
    lines = ["# Results"]
    for (task, dataset), results in sorted(groups.items()):
        names = column_names(results)
        keys = list(dict.fromkeys(key for result in results for key, v in result["metrics"].items() if is_number(v)))
        lines += ["", f"## {task}: {dataset}", "", f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for key in keys:
            values = [result["metrics"].get(key) for result in results]
            lines.append(f"| {key} | {' | '.join(show(key, value) for value in values)} |")
        settings = [result.get("settings", {}) for result in results]
        for key in sorted({key for one in settings for key in one}):
            values = [one.get(key) for one in settings]
            if any(value != values[0] for value in values):
                lines += ["", f"{key} differs: " + "; ".join(f"{n}: {v}" for n, v in zip(names, values))]
    return "\n".join(lines) + "\n"


def column_names(results: Sequence[Mapping]) -> list[str]:
    """Short names of the models; where they are the same with the folder of the result, or its date."""
    names = [short_name(result.get("model", {}).get("name", "?")) for result in results]
    for detail in ("folder", "date"):
        if len(set(names)) == len(names):
            break
        detailed = [f"{name} ({result.get(detail, '?')})" for name, result in zip(names, results)]
        names = detailed if detail == "date" or len(set(detailed)) == len(names) else names
    return names


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if is_share(key) else f"{value:.4g}"
