"""A run of a study: deterministic, above chance, and with the loss it was asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.training.data.emoji import load_emoji
from modeling_siglip_ext.training.studies.data import load_data
from modeling_siglip_ext.training.studies.experiment import (
    Settings,
    build_model,
    loss_of,
    normalized,
    train_and_evaluate,
)


QUICK = Settings(batch_size=16, examples=160)


@pytest.fixture(scope="module")
def data():
    return load_data(("en",))


def test_the_parts_are_apart(data):
    assert len(data.held_out) == 502
    assert len(data.train) + len(data.validation) == 3139
    assert 0.07 < len(data.validation) / 3139 < 0.13
    parts = [{image.numpy().tobytes() for image in part.images} for part in (data.train, data.validation)]
    assert not parts[0] & parts[1]
    first = load_emoji("test")[0]["image"].resize((32, 32))
    assert abs(data.held_out.images[0].float().mean() - np.asarray(first).mean()) < 2


def test_the_same_settings_give_the_same_numbers():
    def figures(settings: Settings) -> dict:
        return {key: value for key, value in train_and_evaluate(settings).items() if key != "seconds"}

    one = figures(QUICK)
    torch.rand(7)  # the state of the global generator does not matter
    assert figures(QUICK) == one
    assert figures(replace(QUICK, seed=1)) != one
    assert one["steps"] == 10
    assert {"held_out_image_to_text_recall@1", "validation_mrr", "temperature", "bias"} <= one.keys()


def test_losses(data):
    pixels, tokens = normalized(data.train.images[:8]), data.train.tokens["en"][:8]
    generator = torch.Generator().manual_seed(0)
    for settings, reference in (
        (QUICK, lambda images, texts, model: sigmoid_loss(images, texts, model.logit_scale, model.logit_bias)),
        (replace(QUICK, loss="softmax"), lambda images, texts, model: softmax_loss(images, texts, model.logit_scale)),
        (
            replace(QUICK, negatives="hardest", negatives_share=1.0),
            lambda images, texts, model: sigmoid_loss(images, texts, model.logit_scale, model.logit_bias),
        ),
    ):
        model = build_model(settings, data).eval()
        outputs = model(pixel_values=pixels, input_ids=tokens)
        expected = reference(outputs.image_embeds, outputs.text_embeds, model)
        torch.testing.assert_close(loss_of(model, pixels, tokens, settings, generator), expected)
        assert (model.logit_bias is None) == (settings.loss == "softmax")


def test_a_bias_that_is_not_learnt_stays(data):
    for learns in (True, False):
        figures = train_and_evaluate(replace(QUICK, examples=48, bias=0.0, learns_bias=learns))
        assert (figures["bias"] == 0) == (not learns)
        assert figures["temperature"] != 10


@pytest.mark.slow
def test_a_run_learns():
    """Far above chance, 0.2 %; with all texts shuffled, at chance."""
    learnt, shuffled = train_and_evaluate(Settings()), train_and_evaluate(Settings(noise="batch", noise_share=1.0))
    for way in ("image_to_text", "text_to_image"):
        assert learnt[f"held_out_{way}_recall@1"] > 0.03  # the figure moves by points with the sums of a machine
        assert shuffled[f"held_out_{way}_recall@1"] < 0.02
