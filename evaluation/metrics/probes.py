"""Probes of frozen image features with scikit-learn: logistic regression and nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


CS = tuple(float(c) for c in np.logspace(-4, 1, 6))


def metrics_of(labels: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Accuracy, and the mean over the classes that occur of the share of their rows put right."""
    present = np.unique(labels)
    recall = recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    return {"accuracy@1": float(accuracy_score(labels, predicted)), "mean_per_class_recall": float(recall)}


def linear_probe(
    train: np.ndarray,
    train_labels: Sequence[int],
    test: np.ndarray,
    test_labels: Sequence[int],
    *,
    strengths: Sequence[float] = CS,
    seed: int = 0,
    max_iterations: int = 1000,
) -> dict[str, Any]:
    """Logistic regression on standardised features.

    The regularisation (scikit-learn's C) is the best of `strengths` on a fifth of the training rows, drawn with
    `seed`; then all of them are used.

    Returns:
        "accuracy@1", "mean_per_class_recall" and "C".
    """

    def fit(c: float, features: np.ndarray, labels: np.ndarray):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iterations))
        return probe.fit(features, labels)

    train, labels = np.asarray(train), np.asarray(train_labels)
    best = strengths[0]
    if len(strengths) > 1:
        stratify = labels if np.unique(labels, return_counts=True)[1].min() > 1 else None
        share = max(0.2, len(np.unique(labels)) / len(labels)) if stratify is not None else 0.2
        parts = train_test_split(train, labels, test_size=share, random_state=seed, stratify=stratify)
        scores = [fit(c, parts[0], parts[2]).score(parts[1], parts[3]) for c in strengths]
        best = strengths[int(np.argmax(scores))]
    predicted = fit(best, train, labels).predict(np.asarray(test))
    return metrics_of(test_labels, predicted) | {"C": best}


def knn(
    train: np.ndarray, train_labels: Sequence[int], test: np.ndarray, test_labels: Sequence[int], *, k: int = 20
) -> dict[str, float]:
    """Majority vote of the k training rows with the highest cosine."""
    classifier = KNeighborsClassifier(n_neighbors=min(k, len(train)), metric="cosine", algorithm="brute")
    classifier.fit(np.asarray(train), np.asarray(train_labels))
    return metrics_of(test_labels, classifier.predict(np.asarray(test)))
