"""The pictures are written, complete, and show what they should: right answers green, missing fonts named."""

import warnings

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_siglip_ext.evaluation.pictures import retrieval_sheet as plots
from modeling_siglip_ext.evaluation.pictures.retrieval_sheet import caption_fonts, loss_curve, retrieval_contact_sheet
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
    right = tuple(int(plots._RIGHT[i : i + 2], 16) for i in (1, 3, 5))
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


def test_european_captions_need_no_other_font_and_a_missing_script_is_named(monkeypatch):
    # What every machine has: the fonts inside the matplotlib package, one of which "has" all characters as boxes.
    inside = matplotlib.get_data_path()
    shipped = [entry for entry in plots.fontManager.ttflist if entry.fname.startswith(inside)]
    assert any(entry.name == "DejaVu Sans" for entry in shipped)
    monkeypatch.setattr(plots.fontManager, "ttflist", shipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        european = ["woman: dark skin tone", "χαμογελαστό", "улыбается", "față zâmbitoare"]
        assert caption_fonts(european) == ["DejaVu Sans"]
    with pytest.warns(UserWarning, match=r"no installed font has 2 characters of the captions \(笑顔\)"):
        caption_fonts(["smile 笑顔"])


def test_cut_counts_east_asian_characters_twice():
    assert plots._cut("short", 10) == "short"
    assert plots._cut("abcdefghij", 5) == "abcd…"
    assert plots._cut("笑顔笑顔", 8) == "笑顔笑顔"
    assert plots._cut("笑顔笑顔", 7) == "笑顔…"


def test_loss_curve_with_and_without_evaluation(tmp_path):
    losses = [{"step": step, "loss": 5.0 / step} for step in range(1, 20)]
    both = loss_curve(
        tmp_path / "both.png", [*losses, {"step": 10, "eval_loss": 1.0, "eval_image_to_text_recall@1": 0.5}]
    )
    alone = loss_curve(tmp_path / "alone.png", losses)
    assert read_image(both).width > read_image(alone).width
    with pytest.raises(ValueError, match="'step' and 'loss'"):
        loss_curve(tmp_path / "none.png", [{"step": 1, "eval_loss": 2.0}])
