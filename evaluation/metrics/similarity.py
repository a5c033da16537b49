"""A threshold for similarities, calibrated on labelled pairs."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def calibrate_threshold(
    similarities: Sequence[float] | np.ndarray, matched: Sequence[bool] | np.ndarray, *, precision: float | None = None
) -> dict[str, float]:
    """The cosine from which a pair counts as matched: the best F1, or the most recall at a wanted precision.

    Args:
        similarities: one cosine a pair.
        matched: whether the pair belongs together.
        precision: the least share of right ones among those accepted.

    Returns:
        "threshold", its "precision", "recall" and "f1", and of all thresholds together "average_precision" and
        "roc_auc".

    Raises:
        ValueError: only pairs of one kind, or a precision that no threshold reaches.
    """
    scores, truth = np.asarray(similarities, np.float64), np.asarray(matched, bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"{scores.shape} similarities for {truth.shape} labels")
    if truth.all() or not truth.any():
        raise ValueError("all pairs are of one kind; a threshold needs matched and unmatched ones")
    precisions, recalls, thresholds = precision_recall_curve(truth, scores)
    precisions, recalls = precisions[:-1], recalls[:-1]  # the last has no threshold
    f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, 1e-300)
    if precision is None:
        best = int(np.argmax(f1))
    else:
        enough = np.flatnonzero(precisions >= precision)
        if not len(enough):
            raise ValueError(f"no threshold reaches a precision of {precision}; the best is {precisions.max():.3f}")
        best = int(enough[np.argmax(recalls[enough])])
    return {
        "threshold": float(thresholds[best]),
        "precision": float(precisions[best]),
        "recall": float(recalls[best]),
        "f1": float(f1[best]),
        "average_precision": float(average_precision_score(truth, scores)),
        "roc_auc": float(roc_auc_score(truth, scores)),
    }
