"""Processor, image processor and text rules, against the stock ones and against big_vision's text examples."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)

from modeling_siglip_ext import (
    SiglipExtImageProcessor,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtTextConfig,
    SiglipExtTextModel,
    apply_text_rules,
    fit_tokenizer,
    train_tokenizer,
)
from modeling_siglip_ext.tokenization_siglip_ext import set_text_length
from support.images import noise
from support.models import TINY_TEXT
from support.tokenizers import KINDS


CAPTIONS = ["A red square", "a blue circle", "two green triangles on a white ground"]


@pytest.fixture
def processor() -> SiglipExtProcessor:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=12)
    return SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 16, "width": 16}), tokenizer)


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return noise(width, height).convert(mode)


def test_images_equal_the_stock_processor():
    images = [photo(50, 30), photo(16, 90)]
    size = {"height": 32, "width": 32}
    ours = SiglipExtImageProcessor(size=size)(images, return_tensors="pt").pixel_values
    theirs = SiglipImageProcessorPil(size=size)(images, return_tensors="pt").pixel_values
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_center_crop": True, "crop_size": {"height": 24, "width": 20}},
        {"resample": Image.Resampling.BILINEAR, "do_normalize": False},
        {"size": {"shortest_edge": 20}},
    ],
    ids=str,
)
def test_settings_mean_what_they_mean_to_the_stock_processor(settings):
    see_through = photo(50, 30)
    see_through.info["transparency"] = tuple(see_through.getpixel((0, 0)))
    for image in (photo(50, 30), see_through, np.asarray(photo(50, 30))):
        given = {"size": {"height": 32, "width": 32}, **settings, "return_tensors": "pt"}
        ours = SiglipExtImageProcessor()(image, **given).pixel_values
        assert torch.equal(ours, SiglipImageProcessorPil()(image, **given).pixel_values)


def test_naflex_patches_equal_the_stock_processor():
    images = [photo(50, 30), photo(16, 90)]
    ours = SiglipExtNaflexImageProcessor(max_num_patches=16, patch_size=8)(images, return_tensors="pt")
    theirs = Siglip2ImageProcessorPil(max_num_patches=16, patch_size=8)(images, return_tensors="pt")
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_image_mode_becomes_three_channels(mode):
    image = photo(20, 20, mode)
    pixels = SiglipExtImageProcessor(size={"height": 8, "width": 8})(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.abs().max() <= 1
    expected = SiglipExtImageProcessor(size={"height": 8, "width": 8})(image.convert("RGB"), return_tensors="pt")
    assert torch.equal(pixels, expected.pixel_values)


def test_texts_come_at_full_length_without_a_mask(processor):
    inputs = processor(text=CAPTIONS, images=[photo(20, 20)], return_tensors="pt")
    assert set(inputs) == {"input_ids", "pixel_values"}
    assert inputs.input_ids.shape == (3, 12)
    assert inputs.pixel_values.shape == (1, 3, 16, 16)


@pytest.fixture
def fresh_warnings():
    logging.Logger.warning_once.cache_clear()


@pytest.mark.parametrize("padding", [True, "longest"])
@pytest.mark.usefixtures("fresh_warnings")
def test_padding_to_the_longest_is_turned_into_full_length_with_a_warning(processor, padding, caplog):
    with caplog.at_level(logging.WARNING):
        inputs = processor(text=["a red square"], padding=padding, return_tensors="pt")
    assert inputs.input_ids.shape == (1, 12)
    assert "max_length" in caplog.text
    nested = processor(text=["a red square"], text_kwargs={"padding": padding}, return_tensors="pt")
    assert nested.input_ids.shape == (1, 12)


@pytest.mark.usefixtures("fresh_warnings")
def test_the_warning_comes_once(processor, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            processor(text=["a red square"], padding=True)
    assert len(caplog.records) == 1


def test_nothing_to_process_raises(processor):
    with pytest.raises(ValueError, match="images, text or both"):
        processor()


def test_a_tokenizer_without_a_length_raises(processor):
    processor.tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="model_max_length"):
        processor(text=["a"])


@pytest.mark.parametrize(("rules", "padding"), [("v1", "</s>"), ("v2", "<pad>")])
def test_text_rules(rules, padding):
    tokenizer = apply_text_rules(train_tokenizer(CAPTIONS, vocab_size=300), rules, max_length=8)

    def tokens(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text, padding="max_length", truncation=True)["input_ids"])

    assert tokens("A RED square") == tokens("a red square")
    short = tokens("a red")
    assert len(short) == 8
    assert short[short.index("</s>") :] == ["</s>"] + [padding] * (7 - short.index("</s>"))
    long = tokens("two green triangles on a white ground " * 3)
    assert len(long) == 8
    assert long[-1] == "</s>", "truncation must keep EOS"
    assert long.count("</s>") == 1
    assert set(tokenizer("a")) == {"input_ids"}


def test_text_rules_survive_saving(tmp_path):
    tokenizer = apply_text_rules(train_tokenizer(CAPTIONS, vocab_size=300), "v1", max_length=8)
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "A Blue CIRCLE"
    settings = {"padding": "max_length", "truncation": True}
    assert dict(again(text, **settings)) == dict(tokenizer(text, **settings))


def test_a_saved_processor_forgets_the_length_of_its_last_call(processor, tmp_path):
    processor(text=["a red square"], max_length=5)
    processor.save_pretrained(tmp_path)
    assert len(AutoProcessor.from_pretrained(tmp_path)(text=["a"], padding="max_length").input_ids[0]) == 12


def test_a_tokenizer_gets_another_length(processor, tmp_path):
    processor.tokenizer("a red square", padding="max_length", max_length=5, truncation=True)
    processor.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    set_text_length(tokenizer, 20)
    SiglipExtProcessor(processor.image_processor, tokenizer).save_pretrained(tmp_path / "processor")
    for own in (SiglipExtProcessor(processor.image_processor, tokenizer), tmp_path / "processor"):
        own = own if isinstance(own, SiglipExtProcessor) else AutoProcessor.from_pretrained(own)
        assert len(own(text=["a red square"], padding="max_length").input_ids[0]) == 20


def test_bad_tokenizers_are_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="no eos_token"):
        apply_text_rules(bare)
    bare.eos_token = "</s>"
    with pytest.raises(ValueError, match="no pad_token"):
        apply_text_rules(bare, "v2")
    with pytest.raises(ValueError, match=r"rules='v3'.*v1, v2"):
        apply_text_rules(bare, "v3")


def test_a_tokenizer_is_put_in_order_for_a_tower(tmp_path, fresh_warnings, caplog):
    """Without a mask, at the tower's length and on its own side, also after saving; a mask in training is said."""
    tokenizer = KINDS["on_the_left"]()
    config = SiglipExtTextConfig(**TINY_TEXT | {"vocab_size": 120, "max_position_embeddings": 6, "pooling": "mean"})
    masked = tokenizer("a red square", padding="max_length", max_length=6, truncation=True, return_tensors="pt")
    tower = SiglipExtTextModel(config)
    with caplog.at_level(logging.WARNING):
        tower.train()(**{name: masked[name] for name in ("input_ids", "attention_mask")})
    assert "attention_mask has no effect" in caplog.text
    fit_tokenizer(tokenizer, config)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert dict(one("a red square", padding="max_length", truncation=True)).keys() == {"input_ids"}
        assert one("a red", padding="max_length", truncation=True)["input_ids"][:2] == [0, 0]
        assert (one.model_max_length, one.truncation_side) == (6, "left")
    assert config.pad_token_id == 0
