"""Captions, boxes and scores of images, for the models and inputs that people have."""

import pytest
import torch
from datasets import Dataset
from transformers import SiglipModel

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    native_config,
)
from modeling_siglip_ext.captioning import (
    CaptionDecoder,
    CaptionDecoderConfig,
    Sampling,
    TargetWriter,
    caption,
    locate,
    locate_all,
    score_captions,
)
from modeling_siglip_ext.images import UnreadableImageError
from support.images import noise
from support.models import TINY, TINY_NAFLEX, make_config, make_processor


IMAGES = [noise(30, 40, seed) for seed in range(5)]
TEXTS = ["a cat : 0 1 2 3 4 5 6 7 8 9", "a dog"]


@pytest.fixture
def processor() -> SiglipExtProcessor:
    return make_processor(TEXTS, length=8)


@pytest.fixture
def model(processor) -> SiglipExtModel:
    return SiglipExtModel(make_config(text={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 8}))


@pytest.fixture
def decoder(model, processor) -> CaptionDecoder:
    config = CaptionDecoderConfig.for_towers(model.config, processor.tokenizer, max_length=30)
    decoder = CaptionDecoder(config)
    torch.nn.init.normal_(decoder.output.weight)
    return decoder


def test_boxes_are_in_pixels_and_no_box_is_none(model, decoder, processor, monkeypatch):
    """Of what a decoder writes, whatever it is."""
    written = iter(["50 100 250 500", "0 0 500 250", "a cat", "5 6 7"])

    def generate(decoder, encoded, prompts, **settings):
        assert prompts == [TargetWriter(processor.tokenizer, decoder.config).referring_prompt("a cat")] * len(encoded)
        return [processor.tokenizer(next(written))["input_ids"] for _ in encoded]

    monkeypatch.setattr("modeling_siglip_ext.captioning.images.generate", generate)
    images = [noise(30, 40), noise(80, 20)]
    assert locate_all(model, decoder, processor, images, ["a cat"] * 2) == [(3, 8, 15, 40), (0, 0, 80, 10)]
    assert locate(model, decoder, processor, images[0], "a cat") is None
    assert locate(model, decoder, processor, images[0], "a cat") is None


def test_batches_and_entrances_agree(model, decoder, processor, tmp_path):
    expected = [caption(model, decoder, processor, [image])[0] for image in IMAGES]
    assert len(set(expected)) > 1
    assert caption(model, decoder, processor, IMAGES, batch_size=2) == expected
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    assert caption(model, decoder, processor, tmp_path) == expected
    assert caption(model, decoder, processor, Dataset.from_dict({"photo": IMAGES}), column="photo") == expected
    assert caption(model.vision_model, decoder, processor, IMAGES) == expected
    stock = SiglipModel(native_config(model.config)).eval()
    stock.load_state_dict(model.state_dict())
    assert caption(stock, decoder, processor, IMAGES) == expected
    assert model.training
    assert decoder.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_tower_may_be_of_another_precision(model, decoder, processor, dtype):
    """As transformers loads one that was saved so; the decoder stays what it is."""
    own = model.to(dtype)
    tokens = own.eval().get_image_features(**processor(images=IMAGES[:1], return_tensors="pt").to(dtype))
    expected = decoder.eval().new_cache(tokens.last_hidden_state.float())[0].image_keys
    assert torch.equal(decoder.new_cache(tokens.last_hidden_state)[0].image_keys, expected)
    assert len(caption(own, decoder, processor, IMAGES)) == 5
    assert len(locate_all(own, decoder, processor, IMAGES[:1], ["a cat"])) == 1
    assert score_captions(own, decoder, processor, IMAGES, TEXTS).dtype == torch.float32


def test_draws_differ_between_images_and_repeat(model, decoder, processor):
    same = [IMAGES[0]] * 6
    drawn = caption(model, decoder, processor, same, batch_size=2, sampling=Sampling(5.0))
    assert len(set(drawn)) == 6
    for size in (2, 1, 5):  # whatever is written beside them
        assert caption(model, decoder, processor, same, batch_size=size, sampling=Sampling(5.0)) == drawn
    assert caption(model, decoder, processor, same, batch_size=2, sampling=Sampling(5.0, seed=9)) != drawn


def test_naflex(processor):
    text = {**TINY, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 20}
    ours = SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=TINY_NAFLEX))
    naflex = SiglipExtProcessor(SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16), processor.tokenizer)
    decoder = CaptionDecoder(CaptionDecoderConfig.for_towers(ours.config, processor.tokenizer))
    torch.nn.init.normal_(decoder.output.weight)
    images = [noise(30, 40), noise(90, 20), noise(16, 16)]
    expected = [caption(ours, decoder, naflex, [image])[0] for image in images]
    assert caption(ours, decoder, naflex, images) == expected
    # of 2 x 2 patches of its own
    small, own = noise(8, 8), SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=4)
    alone = score_captions(ours, decoder, SiglipExtProcessor(own, processor.tokenizer), [small], TEXTS)
    scores = score_captions(ours, decoder, naflex, [*images, small], TEXTS, upscale=False)
    torch.testing.assert_close(scores[3:], alone)
    assert not torch.allclose(score_captions(ours, decoder, naflex, [small], TEXTS), alone)
    torch.testing.assert_close(
        score_captions(ours, decoder, naflex, images, TEXTS, max_num_patches=4)[2:],
        score_captions(ours, decoder, SiglipExtProcessor(own, processor.tokenizer), images[2:], TEXTS),
    )
    with pytest.raises(ValueError, match="for NaFlex models"):
        caption(ours, decoder, make_processor(TEXTS, length=8), images, upscale=False)


def test_scores_are_of_each_caption_alone(model, decoder, processor):
    scores = score_captions(model, decoder, processor, IMAGES, TEXTS, batch_size=2)
    assert scores.shape == (5, 2)
    alone = score_captions(model, decoder, processor, IMAGES[3:4], TEXTS[1:])
    torch.testing.assert_close(scores[3:4, 1:], alone, rtol=1e-5, atol=1e-4)


def test_bad_input_is_refused(model, decoder, processor, tmp_path):
    for call in (
        lambda: score_captions(model, decoder, processor, IMAGES, "a cat"),
        lambda: locate_all(model, decoder, processor, IMAGES, "a cat"),
        lambda: locate_all(model, decoder, processor, "a.png", ["a cat"]),
    ):
        with pytest.raises(TypeError, match=r"must be a list, got '.*': put it in brackets"):
            call()
    with pytest.raises(TypeError, match="None is a NoneType, not a text"):
        score_captions(model, decoder, processor, IMAGES, ["a cat", None])
    with pytest.raises(ValueError, match="there are no captions"):
        score_captions(model, decoder, processor, IMAGES, [])
    with pytest.raises(ValueError, match="there are no images"):
        score_captions(model, decoder, processor, [], TEXTS)
    with pytest.raises(ValueError, match="5 images need as many phrases, got 1"):
        locate_all(model, decoder, processor, IMAGES, ["a cat"])
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"no\.png"):
        caption(model, decoder, processor, [tmp_path / "no.png"])
