"""Boxes as text and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.captioning import TextFormat, checked_box


FORMATS = [
    TextFormat(),
    TextFormat(box_order=("left", "bottom", "right", "top"), box_separator=", ", y_up=True),
    TextFormat(box_scale=1000, box_order=("top", "left", "bottom", "right")),
]
SHARE = st.floats(0, 1)


@settings(max_examples=50)
@given(st.sampled_from(FORMATS), SHARE, SHARE, SHARE, SHARE)
def test_a_box_comes_back_within_half_a_step(form, one, two, three, four):
    box = (min(one, two), min(three, four), max(one, two), max(three, four))
    text = form.write_box(box)
    found = form.read_box(text)
    assert max(abs(a - b) for a, b in zip(box, found)) <= 0.5 / form.box_scale + 1e-12
    assert form.write_box(found) == text


def test_the_default_text_is_locca_s():
    assert TextFormat().write_box((0.1, 0, 0.5, 1)) == "50 0 250 500"
    assert (
        TextFormat(box_order=("left", "bottom", "right", "top"), y_up=True).write_box((0, 0.2, 1, 1)) == "0 0 500 400"
    )


@pytest.mark.parametrize("text", ["", "a cat", "1 2 3", "1 2 3 4 5", "1 2 3 501", "300 0 200 10", "0 300 10 200"])
def test_a_text_that_is_no_box(text):
    assert TextFormat().read_box(text) is None


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([1, 2, 3], "is not left, top, right, bottom"),
        ("cat", "is not left, top, right, bottom"),
        (None, "is not left, top, right, bottom"),
        ([10, 20, 30, 40], "not within 0 and 1: give shares"),
        ([float("nan"), 0, 1, 1], "not within 0 and 1"),
        ([0.5, 0, 0.4, 1], "left <= right"),
    ],
)
def test_what_is_no_box_is_refused(box, reason):
    with pytest.raises(ValueError, match=reason):
        checked_box(box)


def test_a_hair_beyond_the_image_is_the_edge():
    assert checked_box([-1e-4, 0, 1.0000001, 1]) == (0, 0, 1, 1)


def test_formats_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="box_order must have each of"):
        TextFormat(box_order=("left", "top", "left", "bottom"))
    with pytest.raises(ValueError, match="box_scale"):
        TextFormat(box_scale=0)
    for separator in ("", "0"):
        with pytest.raises(ValueError, match="box_separator"):
            TextFormat(box_separator=separator)
