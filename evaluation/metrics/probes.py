"""Probes of frozen image features with scikit-learn: logistic regression and nearest neighbours.

It is imported on use: training imports this room, and needs none of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


CS = tuple(float(c) for c in np.logspace(-4, 1, 6))


def metrics_of(labels: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean over the classes that occur of the share of their rows put right."""
    from sklearn.metrics import accuracy_score, recall_score

    present = np.unique(labels)
    recall = recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    return {"accuracy@1": float(accuracy_score(labels, predicted)), "mean_per_class_recall": float(recall)}


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[int] | np.ndarray,
    test: np.ndarray,
    test_labels: Sequence[int] | np.ndarray,
    *,
    seed: int = 0,
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
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(c: float, features: np.ndarray, labels: np.ndarray):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(features, labels)

    train, labels = np.asarray(train), np.asarray(train_labels)
    stratify = labels if np.unique(labels, return_counts=True)[1].min() > 1 else None
    share = max(0.2, len(np.unique(labels)) / len(labels)) if stratify is not None else 0.2
    parts = train_test_split(train, labels, test_size=share, random_state=seed, stratify=stratify)
    scores = [fit(c, parts[0], parts[2]).score(parts[1], parts[3]) for c in CS]
    best = CS[int(np.argmax(scores))]
    predicted = fit(best, train, labels).predict(np.asarray(test))
    return metrics_of(test_labels, predicted) | {"C": best}


def knn(
    train: np.ndarray,
    train_labels: Sequence[int] | np.ndarray,
    test: np.ndarray,
    test_labels: Sequence[int] | np.ndarray,
    *,
    k: int = 20,
) -> dict[str, float]:
    """Majority vote of the k training rows with the highest cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(n_neighbors=min(k, len(train)), metric="cosine", algorithm="brute")
    classifier.fit(np.asarray(train), np.asarray(train_labels))
    return metrics_of(test_labels, classifier.predict(np.asarray(test)))
