"""Few-shot regression and probes against scikit-learn and naive numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, recall_score

from modeling_siglip_ext.evaluation.metrics.probes import (
    few_shot_metrics,
    knn,
    linear_probe,
    metrics_of,
    ridge_scores,
    strict_accuracy,
)


def clusters(rows: int, classes: int = 4, width: int = 12, spread: float = 1.0, seed: int = 0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width)) * 3
    labels = random.permutation(np.arange(rows) % classes)
    return (centres[labels] + spread * random.normal(size=(rows, width))).astype(np.float32), labels


@pytest.mark.parametrize("rows", [8, 200])  # fewer and more rows than features
@pytest.mark.parametrize("l2", [1.0, 1024.0])
def test_ridge_equals_scikit_learn(rows, l2):
    (train, labels), (test, _) = clusters(rows), clusters(30, seed=1)
    mean, std = train.astype(np.float64).mean(0), train.astype(np.float64).std(0) + 1e-5
    with_bias = [np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for x in (train, test)]
    peer = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(with_bias[0], 2.0 * np.eye(4)[labels] - 1)
    np.testing.assert_allclose(ridge_scores(train, labels, test, 4, l2), peer.predict(with_bias[1]), atol=1e-7)


def test_few_shot_takes_so_many_rows_a_class_and_averages_seeds():
    (train, labels), (test, test_labels) = clusters(100, spread=4), clusters(200, spread=4, seed=1)
    found = few_shot_metrics(train, labels, test, test_labels, shots=(1, 10), seeds=3)
    seeds = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        chosen = [row for c in range(4) for row in random.permutation(np.where(labels == c)[0])[:10]]
        predicted = ridge_scores(train[chosen], labels[chosen], test, 4, 1024.0).argmax(1)
        seeds.append(accuracy_score(test_labels, predicted))
        assert found[f"accuracy@1_10shot_seed{seed}"] == pytest.approx(seeds[-1])
    assert found["accuracy@1_10shot"] == pytest.approx(np.mean(seeds))
    assert found["accuracy@1_10shot"] > found["accuracy@1_1shot"]
    with pytest.raises(ValueError, match=r"classes \[7\] occur in the test rows only"):
        few_shot_metrics(train, labels, test, np.where(test_labels == 3, 7, test_labels))


def test_ties_count_against_the_model():
    assert strict_accuracy(np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), np.array([0, 0, 0])) == pytest.approx(1 / 3)


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_metrics_equal_a_naive_count(rows, classes, seed):
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(0, classes, (2, rows))
    found = metrics_of(labels, predicted)
    recalls = [np.mean(predicted[labels == c] == c) for c in set(labels.tolist())]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert found["accuracy@1"] == pytest.approx(np.mean(labels == predicted))


def test_probes_separate_clusters_and_not_noise():
    (train, labels), (test, test_labels) = clusters(160), clusters(80, seed=1)
    for probe in (linear_probe, knn):
        assert probe(train, labels, test, test_labels)["accuracy@1"] > 0.95
        shuffled = np.random.default_rng(0).permutation(labels)
        assert probe(train, shuffled, test, test_labels)["accuracy@1"] < 0.6


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0, 1], [0, 1, 2], [0, 0, 1, 1, 2], [0, 0]])
def test_a_class_of_one_row_is_trained_on(labels):
    features = 5 * np.eye(4)[labels] + np.random.default_rng(0).normal(size=(len(labels), 4)) / 10
    if len(set(labels)) == 1:
        with pytest.raises(ValueError, match="class"):
            linear_probe(features, labels, features, labels)
    else:
        assert linear_probe(features, labels, features, labels)["accuracy@1"] >= 0.8


def test_knn_equals_a_naive_vote():
    (train, labels), (test, test_labels) = clusters(60, spread=4), clusters(40, spread=4, seed=1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1)[:, :5]
    predicted = [np.bincount(labels[row], minlength=4).argmax() for row in nearest]
    found = knn(train, labels, test, test_labels, k=5)
    assert found["accuracy@1"] == pytest.approx(accuracy_score(test_labels, predicted))
    recall = recall_score(test_labels, predicted, average="macro")
    assert found["mean_per_class_recall"] == pytest.approx(recall)
