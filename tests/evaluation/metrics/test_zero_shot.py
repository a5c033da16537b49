"""Zero-shot classification against hand-made cases and a naive version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.metrics.zero_shot import (
    ForcedChoiceTask,
    ZeroShotTask,
    class_embeddings,
    fill_templates,
    first_of_same,
    forced_choice_accuracy,
    zero_shot_metrics,
    zero_shot_ranks,
)


def test_class_embedding_is_the_normalised_mean_of_normalised_prompts():
    vectors = {"a": [2.0, 0.0], "b": [0.0, 0.5], "c": [0.0, -3.0]}
    found = class_embeddings(lambda texts: torch.tensor([vectors[text] for text in texts]), [["a", "b"], ["c"]])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_every_distinct_prompt_is_embedded_once_in_bounded_batches():
    calls = []

    def embed(texts):
        calls.append(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    class_embeddings(embed, [["x", "same"], ["same", "yyy"], ["zzzz"]], batch_size=2)
    assert calls == [["x", "same"], ["yyy", "zzzz"]]


def test_templates_take_names_with_braces_literally():
    assert fill_templates(["cat", "{odd}"], ["a {}", "{}!"]) == [["a cat", "cat!"], ["a {odd}", "{odd}!"]]
    with pytest.raises(ValueError, match="photo of"):
        fill_templates(["cat"], ["a photo of"])


@given(st.integers(2, 8), st.integers(1, 30), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_metrics_equal_a_naive_version(classes, count, random):
    images = np.array([[random.randint(-2, 2) for _ in range(3)] for _ in range(count)], np.float32)
    prototypes = np.array([[random.randint(-2, 2) for _ in range(3)] for _ in range(classes)], np.float32)
    labels = [random.randrange(classes) for _ in range(count)]
    found = zero_shot_metrics(torch.tensor(images), torch.tensor(prototypes), labels)

    first, hits = [], {}
    for image, label in zip(images, labels):
        order = sorted(range(classes), key=lambda c: (-float(image @ prototypes[c]), c == label))
        first.append(order.index(label))
        hits.setdefault(label, []).append(first[-1] == 0)
    assert found["accuracy@1"] == pytest.approx(np.mean([rank == 0 for rank in first]))
    assert found["mean_per_class_recall"] == pytest.approx(np.mean([np.mean(h) for h in hits.values()]))
    if classes > 5:
        assert found["accuracy@5"] == pytest.approx(np.mean([rank < 5 for rank in first]))
    else:
        assert "accuracy@5" not in found


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 8), classes=st.integers(2, 5), seed=st.integers(0, 999))
def test_forced_choice_equals_the_naive_count(count, classes, seed):
    random = np.random.default_rng(seed)
    # small integers, so that equal scores do occur
    vectors = {f"text {i}": random.integers(-1, 2, 4) + 0.5 for i in range(count + classes)}
    images = random.integers(-1, 2, (count, 4)).astype(np.float32)
    choices = [[f"text {j}" for j in random.permutation(count + classes)[:classes]] for _ in range(count)]
    labels = random.integers(0, classes, count).tolist()
    task = ForcedChoiceTask("t", ["c"] * classes, choices, range(count), labels)
    unit = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    right = 0
    for image, texts, label in zip(images, choices, labels):
        scores = [float(image @ unit[text]) for text in texts]
        right += all(scores[label] > score + 1e-6 for i, score in enumerate(scores) if i != label)

    def embed(texts):
        return torch.tensor(np.array([vectors[text] for text in texts]))

    assert forced_choice_accuracy(embed, torch.tensor(images), task) == pytest.approx(right / count)


def test_bad_labels_and_tasks_are_named():
    with pytest.raises(ValueError, match="row 7 has not 2 different candidates"):
        ForcedChoiceTask("tone", ["a", "b"], [["x", "x"]], [7], [0])
    with pytest.raises(ValueError, match="1 rows, 2 labels, 1 choices"):
        ForcedChoiceTask("tone", ["a", "b"], [["x", "y"]], [7], [0, 1])
    with pytest.raises(ValueError, match="within 0 and 1"):
        zero_shot_metrics(torch.ones(2, 3), torch.ones(2, 3), [0, 2])
    with pytest.raises(ValueError, match="labels of shape"):
        zero_shot_metrics(torch.ones(2, 3), torch.ones(2, 3), [0])
    with pytest.raises(ValueError, match="'tone': 2 classes but prompts for 1"):
        ZeroShotTask("tone", ["a", "b"], [["a"]], [], [])
    with pytest.raises(ValueError, match="without prompts"):
        class_embeddings(lambda texts: torch.ones(len(texts), 2), [["a"], []])


@given(st.integers(2, 7), st.integers(1, 20), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_ranks_with_several_right_classes_equal_a_naive_sort(classes, count, random):
    images = np.array([[random.randint(-2, 2) for _ in range(3)] for _ in range(count)], np.float32)
    prototypes = np.array([[random.randint(-2, 2) for _ in range(3)] for _ in range(classes)], np.float32)
    labels = [random.sample(range(classes), random.randint(1, classes)) for _ in range(count)]
    found = zero_shot_ranks(torch.tensor(images), torch.tensor(prototypes), labels).tolist()
    for image, own, rank in zip(images, labels, found):
        order = sorted(range(classes), key=lambda c: (-float(image @ prototypes[c]), c in own))
        assert rank == next(place for place, c in enumerate(order) if c in own)


def test_of_classes_with_one_name_the_first_wins_as_with_argmax():
    prompts = fill_templates(["missile", "cat", "missile"], ["a {}"])
    assert first_of_same(prompts) == [0, 1, 0]
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = [0, 1, 2]
    assert zero_shot_metrics(images, classes, labels, ks=(1,))["accuracy@1"] == pytest.approx(1 / 3)
    found = zero_shot_metrics(images, classes, labels, ks=(1,), first_of=first_of_same(prompts))
    argmax = ((images @ classes.T).argmax(1) == torch.tensor(labels)).double().mean().item()
    assert found["accuracy@1"] == argmax == pytest.approx(2 / 3)


def test_an_image_without_a_right_class_is_named():
    with pytest.raises(ValueError, match="image 1 has no right class"):
        zero_shot_ranks(torch.ones(2, 3), torch.ones(4, 3), [[1], []])
