"""Thresholds against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from modeling_siglip_ext.evaluation.metrics.similarity import calibrate_threshold


@given(st.integers(2, 40), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_the_threshold_has_the_best_f1_of_all(count, seed):
    random = np.random.default_rng(seed)
    matched = np.arange(count) % 2 == 0
    scores = np.round(random.normal(size=count) + matched, 1)  # ties
    found = calibrate_threshold(scores, matched)
    best = max(f1_score(matched, scores >= threshold) for threshold in scores)
    assert found["f1"] == pytest.approx(best)
    assert f1_score(matched, scores >= found["threshold"]) == pytest.approx(best)
    accepted = scores >= found["threshold"]
    assert found["precision"] == pytest.approx(matched[accepted].mean())
    assert found["recall"] == pytest.approx(accepted[matched].mean())


def test_a_wanted_precision_is_kept_with_the_most_recall():
    random = np.random.default_rng(0)
    matched = random.random(400) < 0.3
    scores = random.normal(size=400) + 1.5 * matched
    found = calibrate_threshold(scores, matched, precision=0.9)
    assert matched[scores >= found["threshold"]].mean() >= 0.9
    lower = [t for t in scores if t < found["threshold"] and matched[scores >= t].mean() >= 0.9]
    assert not lower
    with pytest.raises(ValueError, match="no threshold reaches a precision"):
        calibrate_threshold([1.0, 0.0], [False, True], precision=0.9)
    with pytest.raises(ValueError, match="all pairs are of one kind"):
        calibrate_threshold([1.0, 0.0], [True, True])
    with pytest.raises(ValueError, match=r"\(2,\) similarities for \(3,\) labels"):
        calibrate_threshold([1.0, 0.0], [True, True, False])
