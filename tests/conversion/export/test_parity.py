"""Figures of parity against plain loops in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_siglip_ext.conversion.export.parity import compare, compare_answers


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_parity_is_what_plain_loops_find():
    wanted = F.normalize(torch.randn(20, 6) + 3, dim=-1)
    found = F.normalize(wanted + 0.01 * torch.randn(20, 6), dim=-1)
    alone = F.normalize(found[:4] + 0.001 * torch.randn(4, 6), dim=-1)
    parity = compare(wanted, found, alone)
    mine, theirs, single = (array.double().numpy() for array in (wanted, found, alone))
    plain = [cosine(a, b) for a, b in zip(mine, theirs)]
    centred = [cosine(a - mine.mean(0), b - mine.mean(0)) for a, b in zip(mine, theirs)]
    assert parity.inputs == 20
    assert (parity.cosine_least, parity.cosine_mean) == pytest.approx((min(plain), np.mean(plain)), abs=1e-12)
    found_centred = parity.centred_cosine_least, parity.centred_cosine_mean
    assert found_centred == pytest.approx((min(centred), np.mean(centred)), abs=1e-9)
    assert parity.centred_cosine_least < parity.cosine_least  # what plain cosines flatter
    assert parity.largest_difference == pytest.approx(np.abs(mine - theirs).max(), abs=1e-7)
    batches = [cosine(a, b) for a, b in zip(theirs, single)]
    assert parity.batch_cosine_least == pytest.approx(min(batches), abs=1e-12)
    assert parity.batch_largest_difference == pytest.approx(np.abs(theirs[:4] - single).max(), abs=1e-7)


def test_answers_count_nearest_neighbours():
    texts, images = torch.eye(4), torch.eye(4)[[0, 1, 2, 3, 0]]
    other = images.clone()
    other[1] = torch.tensor([0.0, 0.1, 0.9, 0.0])  # now nearest to text 2
    answers = compare_answers((images, texts), (other, texts))
    assert answers.text_of_image == pytest.approx(4 / 5)
    assert answers.image_of_text == 1.0  # of text 1 the nearest image is still the same
    assert answers.least == answers.text_of_image
