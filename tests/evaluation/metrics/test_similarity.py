"""Thresholds and duplicates against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from modeling_siglip_ext.evaluation.metrics.similarity import calibrate_threshold, duplicate_groups, duplicate_pairs


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


@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from([-0.5, 0.0, 0.5, 0.99]), st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_duplicates_equal_brute_force_whatever_the_block(count, block, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.nn.functional.normalize(torch.randint(-2, 3, (count, 3), generator=generator).float() + 0.1, dim=-1)
    pairs, scores = duplicate_pairs(embeds, threshold, block=block)
    cosines = embeds @ embeds.T
    near = (cosines - threshold).abs() < 1e-6
    expected = {(a, b) for a in range(count) for b in range(a + 1, count) if cosines[a, b] >= threshold}
    differing = expected ^ set(map(tuple, pairs.tolist()))
    assert all(near[a, b] for a, b in differing)
    np.testing.assert_allclose(scores, cosines[pairs[:, 0], pairs[:, 1]], atol=1e-6)


def test_groups_are_connected_rows_and_unreadable_rows_are_in_none():
    pairs = np.array([[1, 4], [4, 7], [2, 3]])
    assert duplicate_groups(pairs, 9) == [[1, 4, 7], [2, 3]]
    assert duplicate_groups(np.empty((0, 2), np.int64), 3) == []
    embeds = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [1.0, 0.0]])
    assert duplicate_pairs(embeds, 0.9)[0].tolist() == [[0, 2]]
