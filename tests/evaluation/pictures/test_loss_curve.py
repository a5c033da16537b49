"""The curve of a run, with and without evaluation."""

import pytest

from modeling_siglip_ext.evaluation.pictures.loss_curve import loss_curve
from support.images import read_image


def test_loss_curve_with_and_without_evaluation(tmp_path):
    losses = [{"step": step, "loss": 5.0 / step} for step in range(1, 20)]
    both = loss_curve(
        tmp_path / "both.png", [*losses, {"step": 10, "eval_loss": 1.0, "eval_image_to_text_recall@1": 0.5}]
    )
    alone = loss_curve(tmp_path / "alone.png", losses)
    assert read_image(both).width > read_image(alone).width
    with pytest.raises(ValueError, match="'step' and 'loss'"):
        loss_curve(tmp_path / "none.png", [{"step": 1, "eval_loss": 2.0}])
