"""The curves by length carry the figures, and the published ones beside them."""

import pytest

from modeling_siglip_ext.evaluation.known_benchmarks import published
from modeling_siglip_ext.evaluation.pictures import by_length
from support.images import read_image


def test_what_was_published(tmp_path):
    naflex = published("imagenet", "accuracy@1")["SigLIP 2 B/16 NaFlex"]
    assert naflex[144] == pytest.approx(0.762)
    assert published("flickr30k", "image_to_text_recall@1")["SigLIP 2 So400m/16, fixed sizes"][576] == pytest.approx(
        0.959
    )
    assert published("coco", "text_to_image_recall@1")["SigLIP 2 B/16, fixed sizes"][196] == pytest.approx(0.521)
    assert published("pets", "accuracy@1") == published(None, "accuracy@1") == published("coco", "accuracy@1") == {}


def test_the_curves_are_the_figures(tmp_path, monkeypatch):
    found, save = [], by_length.save
    monkeypatch.setattr(by_length, "save", lambda figure, path: (found.append(figure), save(figure, path))[1])
    values = {64: 0.5, 256: 0.75, 1024: 0.7}
    panels = [by_length.Panel("a", values, published("imagenet", "accuracy@1")), by_length.Panel("b", values)]
    path = by_length.figures_by_length(tmp_path / "a.png", panels, title="Figures")
    assert read_image(path).format == "PNG"
    first, second = found[0].axes
    labels = [line.get_label() for line in first.lines]
    assert labels[-1] == "this model"
    assert labels[0] == "SigLIP 2 B/16 NaFlex, published"
    assert list(first.lines[-1].get_ydata()) == [50, 75, 70]
    assert list(first.lines[0].get_xdata()) == [64, 144, 256, 576, 784, 1024]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["64", "256", "1024"]
    assert [text.get_text() for text in first.texts] == ["50.0", "75.0", "70.0"]
    assert second.get_legend() is None
