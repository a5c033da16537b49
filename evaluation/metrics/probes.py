"""Probes of frozen image features: few-shot ridge regression as big_vision's `fewshot_lsr`, in closed form; logistic
regression and nearest neighbours with scikit-learn.

Scikit-learn is imported on use: training imports this room, and needs none of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

Rows = torch.Tensor | np.ndarray
Labels = Sequence[int] | np.ndarray
# A feature so large that its weight, the bias, is hardly regularised.
_BIAS = 100.0
CS = tuple(float(c) for c in np.logspace(-4, 1, 6))


def check_settings(*, shots: Sequence[int] = (1,), seeds: int = 1, l2: float = 1.0, k: int = 1, seed: int = 0) -> None:
    """
    Raises:
        ValueError: a setting of a probe that no figures can come of.
    """
    for name, value in (("shots", min(shots, default=0)), ("seeds", seeds), ("k", k)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= l2 < float("inf"):
        raise ValueError(f"l2 must be finite and not negative, got {l2}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must not be negative, and fit in 32 bits, got {seed}")


def ridge_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """Class scores (test, classes) in float64 of least squares on whitened features with targets -1 and 1.

    Args:
        train: (N, D); `labels` (N,) its classes.
        test: (M, D).
        l2: strength of the regularisation.
    """
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    mean, std = train.mean(0), train.std(0) + 1e-5

    def prepare(features: np.ndarray) -> np.ndarray:
        return np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS)

    x, y = prepare(train), 2.0 * np.eye(classes)[labels] - 1.0
    # the same solution from the smaller of the two Gram matrices
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), y)
    return prepare(test) @ weights


def strict_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose class scores above all others; ties count against it."""
    scores = np.array(scores)
    own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(scores, labels[:, None], -np.inf, axis=1)
    return float((own > scores.max(axis=1)).mean())


def few_shot_metrics(
    train: Rows,
    train_labels: Labels,
    test: Rows,
    test_labels: Labels,
    *,
    shots: Sequence[int] = (10,),
    seeds: int = 3,
    l2: float = 2.0**10,
) -> dict[str, float]:
    """Accuracy with so many examples a class, for each seed and on average.

    Returns:
        "accuracy@1_{shots}shot" (the mean over the seeds) and "accuracy@1_{shots}shot_seed{n}".

    Raises:
        ValueError: a class of the test rows has no training row, or a setting that cannot be.
    """
    check_settings(shots=shots, seeds=seeds, l2=l2)
    train, test = np.asarray(train), np.asarray(test)
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    missing = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if missing:
        raise ValueError(f"classes {missing[:10]} occur in the test rows only")
    classes = int(train_labels.max()) + 1
    metrics = {}
    sizes = np.bincount(train_labels)
    for shot in shots:
        few = np.flatnonzero((sizes > 0) & (sizes < shot))
        if len(few):
            logger.warning(
                "%d of the classes have fewer than %d training rows, e.g. class %d has %d: all of theirs are used",
                len(few),
                shot,
                few[0],
                sizes[few[0]],
            )
        found = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            chosen = np.concatenate(
                [random.permutation(np.flatnonzero(train_labels == label))[:shot] for label in range(classes)]
            )
            scores = ridge_scores(train[chosen], train_labels[chosen], test, classes, l2)
            found.append(strict_accuracy(scores, test_labels))
            metrics[f"accuracy@1_{shot}shot_seed{seed}"] = found[-1]
        metrics[f"accuracy@1_{shot}shot"] = float(np.mean(found))
    return metrics


def metrics_of(labels: Labels, predicted: Labels) -> dict[str, float]:
    """Accuracy, and the mean over the classes that occur of the share of their rows put right."""
    from sklearn.metrics import accuracy_score, recall_score

    present = np.unique(labels)
    recall = recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    return {"accuracy@1": float(accuracy_score(labels, predicted)), "mean_per_class_recall": float(recall)}


def linear_probe(
    train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, seed: int = 0
) -> dict[str, Any]:
    """Logistic regression on standardised features.

    The regularisation (scikit-learn's C) is the best of `CS` on a fifth of the training rows, drawn with `seed`; then
    all of them are used.

    Args:
        train, test: (N, D) and (M, D) features.
        train_labels, test_labels: the class of each row.

    Returns:
        "accuracy@1", "mean_per_class_recall" and "C".
    """
    check_settings(seed=seed)
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(c: float, features: np.ndarray, labels: np.ndarray):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(features, labels)

    train, labels = np.asarray(train), np.asarray(train_labels)
    classes, counts = np.unique(labels, return_counts=True)
    single = np.isin(labels, classes[counts == 1])  # a class of one row is trained on, or it would not be known
    if single.all():
        scores = [0.0]  # nothing is left to choose by
    else:
        some, own = train[~single], labels[~single]
        share = max(0.2, (counts > 1).sum() / len(own))
        parts = train_test_split(some, own, test_size=share, random_state=seed, stratify=own)
        kept = np.concatenate([parts[0], train[single]]), np.concatenate([parts[2], labels[single]])
        scores = [fit(c, *kept).score(parts[1], parts[3]) for c in CS]
    best = CS[int(np.argmax(scores))]
    predicted = fit(best, train, labels).predict(np.asarray(test))
    return metrics_of(test_labels, predicted) | {"C": best}


def knn(train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, k: int = 20) -> dict[str, float]:
    """Majority vote of the k training rows with the highest cosine."""
    check_settings(k=k)
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(n_neighbors=min(k, len(train)), metric="cosine", algorithm="brute")
    classifier.fit(np.asarray(train), np.asarray(train_labels))
    return metrics_of(test_labels, classifier.predict(np.asarray(test)))
