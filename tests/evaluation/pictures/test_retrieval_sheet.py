"""The sheet is written, complete, and shows what it should: right answers green."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_siglip_ext.evaluation.pictures.retrieval_sheet import retrieval_contact_sheet
from modeling_siglip_ext.evaluation.pictures.style import RIGHT
from support.images import read_image


COUNT = 12
COLOURS = [tuple(int(v) for v in row) for row in np.random.default_rng(0).integers(0, 255, (COUNT, 3))]


def sheet(path, order, **options):
    images = [Image.new("RGB", (16, 16), colour) for colour in COLOURS]
    embeds = torch.eye(COUNT)
    captions = [f"caption {i}" for i in range(COUNT)]
    return retrieval_contact_sheet(path, images, captions, embeds, embeds[order], queries=4, top=3, **options)


def green_pixels(path) -> int:
    """Pixels of exactly the colour that frames a right image."""
    right = tuple(int(RIGHT[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.asarray(read_image(path).convert("RGB")) == right).all(-1).sum())


def test_right_answers_are_green_and_wrong_ones_are_not(tmp_path):
    perfect = sheet(tmp_path / "perfect.png", list(range(COUNT)))
    # Every text carries the embedding of another image; ties rank the right one last.
    wrong = sheet(tmp_path / "wrong.png", [*range(1, COUNT), 0])
    assert green_pixels(perfect) > 5 * green_pixels(wrong)
    assert green_pixels(perfect) > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["perfect.png", "wrong.png"]
    with Image.open(perfect) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1200


def test_the_same_seed_draws_the_same_picture_and_matplotlib_keeps_its_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    first = sheet(tmp_path / "a.png", list(range(COUNT)), seed=1).read_bytes()
    assert first == sheet(tmp_path / "b.png", list(range(COUNT)), seed=1).read_bytes()
    assert first != sheet(tmp_path / "c.png", list(range(COUNT)), seed=2).read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_lengths_that_differ_and_bad_queries_are_named(tmp_path):
    image = [Image.new("RGB", (4, 4))] * 2
    with pytest.raises(ValueError, match="'captions': 1"):
        retrieval_contact_sheet(tmp_path / "x.png", image, ["a"], torch.eye(2), torch.eye(2))
    with pytest.raises(ValueError, match="within 0 and 1"):
        retrieval_contact_sheet(tmp_path / "x.png", image, ["a", "b"], torch.eye(2), torch.eye(2), queries=[2])
    assert not list(tmp_path.iterdir())
