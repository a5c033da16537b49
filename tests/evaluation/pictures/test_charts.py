"""Pictures of results are written and show the numbers."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from modeling_siglip_ext.evaluation.pictures import charts
from support.images import read_image


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that is saved."""
    found, save = [], charts.save
    monkeypatch.setattr(charts, "save", lambda figure, path: (found.append(figure), save(figure, path))[1])
    return found


def test_confusion_shows_shares_and_the_worst_of_many_classes(tmp_path, figures):
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    path = charts.confusion_matrix(tmp_path / "a.png", labels, predicted, ["cat", "dog", "emu"])
    np.testing.assert_allclose(
        figures[0].axes[0].images[0].get_array(), [[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]], atol=1e-9
    )
    assert read_image(path).format == "PNG"
    random = np.random.default_rng(0)
    many = random.integers(0, 50, 400)
    wrong = np.where(many < 5, (many + 1) % 5, many)
    charts.confusion_matrix(tmp_path / "b.png", many, wrong, [f"class {i}" for i in range(50)], most=5)
    assert [tick.get_text() for tick in figures[1].axes[0].get_yticklabels()] == [f"class {i}" for i in range(5)]


def test_languages_stand_in_order(tmp_path, figures):
    values = {"de": 0.5, "quz": 0.1, "ja": 0.3}
    metrics = {k: {"text_to_image_recall@1": v, "image_to_text_recall@1": v / 2} for k, v in values.items()}
    charts.language_bars(tmp_path / "a.png", metrics)
    axes = figures[0].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["de", "ja", "quz"]
    assert [round(bar.get_height()) for bar in axes.containers[0]] == [50, 30, 10]
    assert "mean 30.0 %" in axes.get_legend().get_texts()[-2].get_text() + axes.get_legend().get_texts()[-1].get_text()


def test_the_histogram_carries_the_threshold(tmp_path, figures):
    random = np.random.default_rng(0)
    matched = np.arange(200) % 2 == 0
    path = charts.similarity_histogram(tmp_path / "a.png", random.normal(size=200) + matched, matched, -0.25)
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert texts == ["threshold −0.250", "unmatched (100)", "matched (100)"] or "threshold −0.250" in texts
    assert read_image(path).width > 600
