"""Recall@k against a naive ranking written independently."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.metrics.retrieval import retrieval_metrics, retrieval_ranks


def naive_ranks(images: np.ndarray, texts: np.ndarray, owner: list[int]) -> tuple[list[int], list[int]]:
    """Sort in float64, wrong answers first among equals."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    of_images = []
    for i in range(len(images)):
        order = sorted(range(len(texts)), key=lambda j: (-scores[i, j], owner[j] == i))
        of_images.append(
            next(sum(owner[j] != i for j in order[:place]) for place, j in enumerate(order) if owner[j] == i)
        )
    of_texts = []
    for j in range(len(texts)):
        order = sorted(range(len(images)), key=lambda i: (-scores[i, j], owner[j] == i))
        of_texts.append(order.index(owner[j]))
    return of_images, of_texts


@st.composite
def retrieval_sets(draw):
    """Small integer vectors, so that ties are frequent and scores exact; one to three captions an image, shuffled."""
    images = draw(st.integers(1, 7))
    owner = [i for i in range(images) for _ in range(draw(st.integers(1, 3)))]
    owner = draw(st.permutations(owner))
    vector = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    image_embeds = draw(st.lists(vector, min_size=images, max_size=images))
    text_embeds = draw(st.lists(vector, min_size=len(owner), max_size=len(owner)))
    return np.array(image_embeds, np.float32), np.array(text_embeds, np.float32), owner


@given(retrieval_sets(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_ranks_equal_a_naive_sort_whatever_the_block(case, block_scores):
    images, texts, owner = case
    found = retrieval_ranks(torch.tensor(images), torch.tensor(texts), owner, block_scores=block_scores)
    expected = naive_ranks(images, texts, owner)
    assert found[0].tolist() == expected[0]
    assert found[1].tolist() == expected[1]


def test_recalls_of_a_known_case():
    # Image 0 finds its caption first, image 1 second, image 2 third.
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.6, 0.5], [0.0, 0.5, 0.8], [0.0, 0.0, 0.3]])
    metrics = retrieval_metrics(images, texts, ks=(1, 2, 3))
    assert metrics["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert metrics["image_to_text_recall@2"] == pytest.approx(2 / 3)
    assert metrics["image_to_text_recall@3"] == 1.0
    # Text 0 finds image 0 first, text 1 prefers image 2, text 2 finds image 2.
    assert metrics["text_to_image_recall@1"] == pytest.approx(2 / 3)


def test_a_collapsed_model_scores_nothing():
    """Everything on one point, up to the rounding of normalisation: not a perfect score, and not chance either."""
    generator = torch.Generator().manual_seed(0)
    point = torch.nn.functional.normalize(torch.randn(1, 768, generator=generator), dim=-1)
    embeds = torch.nn.functional.normalize(point.repeat(301, 1) * torch.rand(301, 1, generator=generator), dim=-1)
    metrics = retrieval_metrics(embeds, embeds.flip(0))
    assert set(metrics.values()) == {0.0}


def test_not_a_number_never_counts_as_found():
    embeds = torch.eye(4)
    broken = embeds.clone()
    broken[:] = torch.nan
    assert set(retrieval_metrics(broken, embeds, ks=(1, 3)).values()) == {0.0}


def test_chance_level_of_random_embeddings():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 2000, 64, generator=generator)
    metrics = retrieval_metrics(images, texts, ks=(100,))
    # 2000 draws at 5 %: three standard deviations are 1.5 points.
    assert abs(metrics["image_to_text_recall@100"] - 0.05) < 0.015


@pytest.mark.parametrize(
    ("images", "texts", "owner", "message"),
    [
        (3, 4, None, "give image_of_text"),
        (3, 3, [0, 1], "image_of_text has shape"),
        (3, 3, [0, 1, 3], "within 0 and 2"),
        (3, 3, [0, 1, -1], "within 0 and 2"),
        (3, 3, [0, 1, 1], "image 2 has no text"),
    ],
)
def test_bad_input_is_named(images, texts, owner, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.ones(images, 2), torch.ones(texts, 2), owner)


def test_widths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        retrieval_metrics(torch.ones(3, 2), torch.ones(3, 4))


@pytest.mark.slow
def test_xm3600_fits_into_two_gigabytes():
    worker = Path(__file__).parent / "xm3600_memory.py"
    done = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) < 2e9
