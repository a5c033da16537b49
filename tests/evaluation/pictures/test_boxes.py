"""Boxes stand where they were found, and the sheet is written whole."""

import numpy as np
import pytest
from PIL import Image

from modeling_siglip_ext.evaluation.pictures.boxes import DrawnBox, box_sheet
from support.images import read_image


def test_a_box_surrounds_what_it_is_of(tmp_path):
    """A black square in a white image, its box around it: all of the frame's colour lies about the black."""
    pixels = np.full((60, 80, 3), 255, np.uint8)
    pixels[20:40, 30:60] = 0
    path = box_sheet(tmp_path / "sheet.png", [Image.fromarray(pixels)], ["a square"], [[DrawnBox((30, 20, 60, 40))]])
    sheet = np.asarray(read_image(path).convert("RGB")).astype(int)
    black = np.argwhere((sheet < 10).all(-1))
    frame = np.argwhere(np.abs(sheet - (0x2C, 0x5F, 0x9E)).max(-1) < 30)
    inner, outer = (black.min(0), black.max(0)), (frame.min(0), frame.max(0))
    assert (np.abs(inner[0] - outer[0]) <= 4).all()
    assert (np.abs(inner[1] - outer[1]) <= 4).all()


def test_rows_labels_and_truths(tmp_path):
    images = [Image.new("RGB", (40, 30), "white")] * 5
    boxes = [[DrawnBox((5, 5, 20, 20), "a cat"), DrawnBox((6, 6, 22, 22), right=True)], [], [], [], []]
    path = box_sheet(tmp_path / "sheet.png", images, ["a cat", "", "x" * 90, "", ""], boxes, columns=2)
    width, height = read_image(path).size
    assert height > width


def test_lengths_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 images need as many captions and boxes, got 2 and 1"):
        box_sheet(tmp_path / "sheet.png", [Image.new("RGB", (4, 4))], ["a", "b"], [[]])
    with pytest.raises(ValueError, match="0 images"):
        box_sheet(tmp_path / "sheet.png", [], [], [])
