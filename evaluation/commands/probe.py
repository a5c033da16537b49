"""`few-shot`, `linear-probe` and `knn`: train on the embeddings of one split, test on those of another."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modeling_siglip_ext.command_line import Subparsers

from ..data import EvaluationData
from ..data.columns import plain
from ..known_benchmarks import find
from ..metrics.probes import check_settings, few_shot_metrics, knn, linear_probe
from ..results import Counts, Result
from .arguments import evaluation_command, open_session, result_path, select_data


# what each takes of the arguments, and what it is
PROBES: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...], str]] = {
    "few-shot": (
        few_shot_metrics,
        ("shots", "seeds", "l2"),
        "Ridge regression on a few embeddings of each class, as big_vision's few-shot evaluation.",
    ),
    "linear-probe": (linear_probe, ("seed",), "Logistic regression on the embeddings of a training split."),
    "knn": (knn, ("k",), "Nearest neighbours among the embeddings of a training split."),
}


def register(commands: Subparsers) -> None:
    for name, (_, _, summary) in PROBES.items():
        data, own = evaluation_command(commands, name, run, summary)
        data.add_argument("--label_column", metavar="NAME", help="column with classes: numbers, or names")
        data.add_argument("--train_split", metavar="NAME", help="part to train on (default: train)")
        if name == "few-shot":
            own.add_argument("--shots", type=int, nargs="+", default=[10], metavar="N", help="examples a class")
            own.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the examples to average over")
            own.add_argument("--l2", type=float, default=2.0**10, help="strength of the regularisation")
        elif name == "knn":
            own.add_argument("--k", type=int, default=20, help="neighbours that vote")
        else:
            own.add_argument("--seed", type=int, default=0, help="draws the rows that choose the regularisation")


def run(arguments: argparse.Namespace) -> None:
    probe, names, _ = PROBES[arguments.command]
    settings = {name: getattr(arguments, name) for name in names}
    check_settings(**settings)
    known = find(arguments.benchmark, arguments.command).train_split if arguments.benchmark else None
    train_split = arguments.train_split or known or "train"
    sets = {"train": select_data(arguments, split=train_split), "test": select_data(arguments)}
    check_apart(sets)
    labels = common_labels(sets)
    session = open_session(arguments)
    embeds = {part: session.embed_images(data) for part, data in sets.items()}
    if not session.first:
        return
    features, targets, counts = {}, {}, {}
    for part, (rows, errors) in embeds.items():
        kept = [row for row in range(len(rows)) if row not in errors]
        if not kept:
            raise ValueError("none of the images can be read")
        features[part] = rows[torch.tensor(kept)].numpy()
        targets[part] = np.array(labels[part])[kept]
        counts |= {f"{part}_rows": len(kept), f"{part}_unreadable": sorted(errors)}
    result = Result(
        arguments.command,
        probe(features["train"], targets["train"], features["test"], targets["test"], **settings),
        dataset=sets["test"].provenance,
        counts=Counts(**counts),
        settings=settings,
        train=sets["train"].provenance,
    )
    session.finish(result, result_path(arguments))


def check_apart(sets: dict[str, EvaluationData]) -> None:
    """
    Raises:
        ValueError: the rows to train on are those to test on.
    """
    train, test = (sets[part].provenance for part in ("train", "test"))
    if train is not None and test is not None and train.fingerprint and train.fingerprint == test.fingerprint:
        raise ValueError(
            f"the rows to train on are those to test on (split {train.split}): name two with --train_split and --split"
        )


def common_labels(sets: dict[str, EvaluationData]) -> dict[str, list[int]]:
    """One label a row, a class having the same number in all sets, whatever the labels are called in each.

    Raises:
        ValueError: a row with several labels, or none.
    """
    alike = len({tuple(data.label_names or ()) for data in sets.values()}) == 1
    named = not alike and all(data.label_names for data in sets.values())
    common = sorted({plain(name) for data in sets.values() for name in data.label_names or ()})
    result = {}
    for part, data in sets.items():
        labels = data.labels or ()
        if any(len(own) != 1 for own in labels):
            raise ValueError(f"the {part} rows have several labels, or none; a probe needs one a row")
        if named and any(own[0] < 0 for own in labels):
            raise ValueError(f"the {part} rows have labels below 0, which stand for no class")
        names = data.label_names or ()
        result[part] = [common.index(plain(names[own[0]])) if named else own[0] for own in labels]
    return result
