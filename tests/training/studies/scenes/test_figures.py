"""Figures of captions and boxes, with decoders that say what they are told to."""

import numpy as np
import pytest
import torch

from modeling_siglip_ext.captioning import CaptionDecoder
from modeling_siglip_ext.training.data.scenes import Scenes
from modeling_siglip_ext.training.data.scenes.captions import caption, names_in
from modeling_siglip_ext.training.studies.scenes import figures
from modeling_siglip_ext.training.studies.scenes.data import (
    SHARD,
    DataSettings,
    TrainingScenes,
    decoder_config,
    draw_shard,
    load_part,
    scene_settings,
    tokenizer_of,
)


def test_names_of_a_caption():
    boxes = [(0, 0, 10, 10), (30, 2, 10, 10), (32, 40, 10, 10)]
    assert names_in(caption(["bus", "oncoming fist", "owl"], boxes)) == ["bus", "oncoming fist", "owl"]
    assert figures.names_found(["bus above owl", "drum"], ["owl left of bus below herb", "bus"]) == 2 / 4


def test_referring_figures_count_boxes(monkeypatch):
    part = load_part((2, 3), 20, 1, 24)
    decoder, tokens = CaptionDecoder(decoder_config(DataSettings(), 8)), torch.zeros(20, 36, 8)
    form, asked = decoder.config.text_format, [one for regions in part.regions for one in regions]
    answers = [form.write_box(box) for _, box in asked]
    monkeypatch.setattr(figures, "written", lambda *_: answers)
    found = figures.referring_figures(decoder, part, tokens, 24)
    assert found["referring"] > 0.9, "boxes in steps of three pixels hardly miss"
    assert found["referring_other"] == 0
    # the box of the next emoji of the same scene
    others = [form.write_box(box) for regions in part.regions for _, box in [*regions[1:], regions[0]]]
    monkeypatch.setattr(figures, "written", lambda *_: others)
    found = figures.referring_figures(decoder, part, tokens, 24)
    assert found["referring"] == 0
    assert found["referring_other"] > 0.9
    monkeypatch.setattr(figures, "written", lambda *_: ["no box"] * len(asked))
    assert set(figures.referring_figures(decoder, part, tokens, 24).values()) == {0.0}


def test_an_untrained_decoder_loses_as_much_on_any_image():
    part = load_part((1, 3), 12, 1, 24)
    decoder = CaptionDecoder(decoder_config(DataSettings(), 8))
    features = figures.Features(torch.randn(12, 36, 8), torch.randn(12, 8))
    found = figures.caption_figures(decoder, part, features, 24)
    uniform = np.log(len(tokenizer_of(24)))
    assert found["caption_loss"] == pytest.approx(uniform) == found["caption_loss_wrong"]
    assert found["exact"] == found["names"] == 0


def test_validation_and_held_out_scenes_are_others_than_those_trained_on():
    training = Scenes(scene_settings((1, 3)))
    trained = {row["image"].tobytes() for row in training.rows(range(100))}
    parts = [load_part((1, 3), 50, seed, 24) for seed in (1, 2)]
    seen = [{image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in part.images} for part in parts]
    assert len(trained.union(*seen)) == len(trained) + len(seen[0]) + len(seen[1])


def test_a_batch_is_what_a_collator_makes(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("modeling_siglip_ext.training.studies.scenes.data.SHARD", 16)
    settings = DataSettings(views=2)
    scenes = TrainingScenes(settings, 24, seed=3)
    assert sorted(scenes.order) == list(range(24)) != list(scenes.order)
    assert not np.array_equal(scenes.order, TrainingScenes(settings, 24, seed=4).order)
    drawn = draw_shard(settings, range(32))
    assert SHARD > 32
    batch = scenes.batch(20, 4, ("pixels", "caption_labels", "local_views", "hidden_patches"))
    for name, values in batch.items():
        assert np.array_equal(values.numpy(), drawn[name][scenes.order[20:]])
    assert batch["local_views"].shape == (4, 2, 3, 36, 36)
    decoded = tokenizer_of(24).decode(batch["caption_labels"][0, 1].tolist(), skip_special_tokens=True)
    row = Scenes(scene_settings((1, 3)))[int(scenes.order[20])]
    form = decoder_config(settings, 1).text_format
    written = [f"aref: {one['text']} : {form.write_box(one['box'])}" for one in row["regions"]]
    assert " ".join(decoded.split()) in written
