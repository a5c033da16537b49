"""Captions of any script are drawn whole or the missing font is named; long ones are cut to their width."""

import warnings

import matplotlib
import pytest

from modeling_siglip_ext.evaluation.pictures import style
from modeling_siglip_ext.evaluation.pictures.style import caption_fonts, cut


def test_european_captions_need_no_other_font_and_a_missing_script_is_named(monkeypatch):
    # What every machine has: the fonts inside the matplotlib package, one of which "has" all characters as boxes.
    inside = matplotlib.get_data_path()
    shipped = [entry for entry in style.fontManager.ttflist if entry.fname.startswith(inside)]
    assert any(entry.name == "DejaVu Sans" for entry in shipped)
    monkeypatch.setattr(style.fontManager, "ttflist", shipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        european = ["woman: dark skin tone", "χαμογελαστό", "улыбается", "față zâmbitoare"]
        assert caption_fonts(european) == ["DejaVu Sans"]
    with pytest.warns(UserWarning, match=r"no installed font has 2 characters of the captions \(笑顔\)"):
        caption_fonts(["smile 笑顔"])


def test_cut_counts_east_asian_characters_twice():
    assert cut("short", 10) == "short"
    assert cut("abcdefghij", 5) == "abcd…"
    assert cut("笑顔笑顔", 8) == "笑顔笑顔"
    assert cut("笑顔笑顔", 7) == "笑顔…"
