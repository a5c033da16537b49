"""Boxes against transformers' own pipeline, which asks for one word at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_siglip_ext.training.data.detection import DetectionSettings, Detector, distinct
from support.detector import small_detector


WORDS = ["red fox", "dog", "tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, size, np.uint8)) for size in ((30, 48, 3), (64, 20, 3))]


def test_boxes_are_those_of_the_pipeline(folder, images):
    everything = DetectionSettings(min_score=0.0, overlap=1.0, most=1000)
    found = Detector(str(folder))(images, [WORDS, WORDS[:1]], everything)
    own = pipeline("zero-shot-object-detection", model=str(folder), device="cpu")
    for image, words, regions in zip(images, (WORDS, WORDS[:1]), found):
        assert regions
        wanted = own(image, candidate_labels=words, threshold=0.0)
        for region in regions:
            left, top, right, bottom = (
                side * length for side, length in zip(region["box"], (image.width, image.height) * 2)
            )
            # the pipeline gives whole pixels, which may lie outside of the image
            near = [
                one for one in wanted
                if one["label"] == region["text"] and abs(one["score"] - region["score"]) < 1e-4
                and abs(min(max(one["box"]["xmin"], 0), image.width) - left) <= 1
                and abs(min(max(one["box"]["ymin"], 0), image.height) - top) <= 1
                and abs(min(max(one["box"]["xmax"], 0), image.width) - right) <= 1
                and abs(min(max(one["box"]["ymax"], 0), image.height) - bottom) <= 1
            ]  # fmt: skip
            assert near, region


def test_an_image_does_not_depend_on_what_others_are_asked_for(folder, images):
    settings = DetectionSettings(min_score=0.0)
    detector = Detector(str(folder))
    together = detector(images, [WORDS, WORDS[:1]], settings)
    apart = [detector([image], [words], settings)[0] for image, words in zip(images, (WORDS, WORDS[:1]))]
    for one, other in zip(together, apart):
        assert [region["text"] for region in one] == [region["text"] for region in other]
        boxes = [torch.tensor([region["box"] for region in regions]) for regions in (one, other)]
        torch.testing.assert_close(*boxes, atol=1e-4, rtol=0)
    assert detector(images, [[], []], settings) == [[], []]
    assert detector(images, [WORDS, []], settings)[1] == []


def test_of_boxes_that_overlap_the_surest_is_kept():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.4, 0.4], [0.5, 0.5, 1, 1], [0, 0, 0.4, 0.3]])
    scores = np.array([0.5, 0.6, 0.4, 0.7, -1.0])
    assert distinct(boxes, scores, 0.5) == [3, 1, 2]
    assert distinct(boxes, scores, 1.0) == [3, 1, 0, 2]
    assert distinct(boxes[:0], scores[:0], 0.5) == []


def test_it_is_asked_for_ngrams_and_categories_each_once():
    settings = DetectionSettings(categories=("cat", "fox"), longest=2)
    assert settings.queries(["red fox", "fox"]) == ["red", "fox", "red fox", "cat"]
    assert DetectionSettings(categories=("cat",), longest=0).queries(["red fox"]) == ["cat"]


@pytest.mark.parametrize("wrong", [{"min_score": 2.0}, {"overlap": -1.0}, {"longest": -1}, {"most": 0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DetectionSettings(**wrong)
