"""Few-shot classification by closed-form ridge regression on frozen features, as big_vision's `fewshot_lsr`."""

from collections.abc import Sequence

import numpy as np
import torch


# A feature so large that its weight, the bias, is hardly regularised.
_BIAS = 100.0


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
    train: torch.Tensor | np.ndarray,
    train_labels: Sequence[int] | np.ndarray,
    test: torch.Tensor | np.ndarray,
    test_labels: Sequence[int] | np.ndarray,
    *,
    shots: Sequence[int] = (10,),
    seeds: int = 3,
    l2: float = 2.0**10,
) -> dict[str, float]:
    """Accuracy with so many examples a class, for each seed and on average.

    Returns:
        "accuracy@1_{shots}shot" (the mean over the seeds) and "accuracy@1_{shots}shot_seed{n}".

    Raises:
        ValueError: a class of the test rows has no training row.
    """
    train, test = np.asarray(train), np.asarray(test)
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    missing = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if missing:
        raise ValueError(f"classes {missing[:10]} occur in the test rows only")
    classes = int(train_labels.max()) + 1
    metrics = {}
    for shot in shots:
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
