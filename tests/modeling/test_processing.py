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
    SiglipProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_siglip_ext import (
    SiglipExtConfig,
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
from support.models import TINY, TINY_TEXT
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
    for given in ({"max_length": 8}, {"text_kwargs": {"max_length": 8}}):
        assert processor(text=["a"], return_tensors="pt", **given)["input_ids"].shape == (1, 8)


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


def test_saving_returns_the_files_as_the_stock_processor_does(processor, tmp_path):
    stock = SiglipProcessor(processor.image_processor, processor.tokenizer)
    assert processor.save_pretrained(tmp_path) == stock.save_pretrained(str(tmp_path))
    assert processor.save_pretrained(str(tmp_path)) == [str(tmp_path / "processor_config.json")]


NAFLEX_SETTINGS = [
    {"patch_size": 16, "max_num_patches": 256},
    {"patch_size": 16, "max_num_patches": 64},
    {"patch_size": 8, "max_num_patches": 16},
    {"patch_size": 14, "max_num_patches": 256, "resample": Image.Resampling.BICUBIC, "do_normalize": False},
]
SAVE = {
    "processor": lambda images, tokenizer, folder: SiglipExtProcessor(images, tokenizer).save_pretrained(folder),
    "parts": lambda images, tokenizer, folder: (images.save_pretrained(folder), tokenizer.save_pretrained(folder)),
    "again by the stock class": lambda images, tokenizer, folder: (
        SiglipExtProcessor(images, tokenizer).save_pretrained(folder),
        AutoProcessor.from_pretrained(folder).save_pretrained(folder),
    ),
    "stock image processor": lambda images, tokenizer, folder: SiglipExtProcessor(
        Siglip2ImageProcessorPil(**{k: v for k, v in images.to_dict().items() if k != "processor_class"}), tokenizer
    ).save_pretrained(folder),
}


@pytest.mark.parametrize("length", [12, 64])
@pytest.mark.parametrize("way", SAVE)
@pytest.mark.parametrize("settings", NAFLEX_SETTINGS, ids=str)
def test_a_saved_naflex_processor_keeps_its_settings(settings, way, length, tmp_path):
    ours = SiglipExtNaflexImageProcessor(**settings)
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=length)
    vision = {**TINY, "naflex": True, "num_patches": 16, "patch_size": settings["patch_size"]}
    text = {**TINY, "vocab_size": 300, "max_position_embeddings": length}
    SiglipExtConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    SAVE[way](ours, tokenizer, tmp_path)
    images = [photo(80, 60), photo(16, 90)]
    expected = ours(images, return_tensors="pt")
    auto = AutoProcessor.from_pretrained(tmp_path)
    assert (auto.image_processor.patch_size, auto.image_processor.max_num_patches) == tuple(settings.values())[:2]
    inputs = auto(images=images, text=CAPTIONS, return_tensors="pt")
    found = {
        "AutoProcessor": inputs,
        "its image processor": auto.image_processor(images, return_tensors="pt"),
        "AutoImageProcessor": AutoImageProcessor.from_pretrained(tmp_path)(images, return_tensors="pt"),
    }
    for name, one in found.items():
        for key, tensor in expected.items():
            assert torch.equal(one[key], tensor), (name, key)
    if way != "parts":  # neither part knows of the other, nor of the model that it lies beside
        wanted = tokenizer(CAPTIONS, padding="max_length", truncation=True)["input_ids"]
        assert inputs.input_ids.tolist() == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"resample": Image.Resampling.LANCZOS},
        {"resample": Image.Resampling.NEAREST, "do_rescale": False},
        {"do_normalize": False},
        {"image_mean": (0.48, 0.45, 0.40), "image_std": (0.26, 0.26, 0.27)},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_center_crop": True, "crop_size": {"height": 24, "width": 20}},
        {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 24},
        {"size": 40, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
        {"size": {"height": 24, "width": 40}},
        {"do_resize": False, "do_pad": True, "pad_size": {"height": 64, "width": 64}},
    ],
    ids=str,
)
def test_a_saved_image_processor_gives_the_same_pixels(settings, processor, tmp_path):
    ours = SiglipExtImageProcessor(**{"size": {"height": 32, "width": 32}, **settings})
    image = photo(50, 30)
    expected = ours(image, return_tensors="pt").pixel_values
    SiglipExtProcessor(ours, processor.tokenizer).save_pretrained(tmp_path / "processor")
    ours.save_pretrained(tmp_path / "images")
    auto = AutoProcessor.from_pretrained(tmp_path / "processor")
    assert torch.equal(auto(images=image, return_tensors="pt").pixel_values, expected)
    for folder in ("processor", "images"):
        for kind in (AutoImageProcessor, SiglipExtImageProcessor):
            again = kind.from_pretrained(tmp_path / folder)
            assert torch.equal(again(image, return_tensors="pt").pixel_values, expected), (folder, kind)


def test_texts_of_a_saved_processor_have_the_full_length_unasked(processor, tmp_path):
    expected = processor(text=CAPTIONS, return_tensors="pt").input_ids
    processor.save_pretrained(tmp_path)
    auto = AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(auto(text=CAPTIONS, return_tensors="pt").input_ids, expected)
    assert torch.equal(auto(text=CAPTIONS, padding="max_length", return_tensors="pt").input_ids, expected)
    assert len(auto(text=["a"], padding=False).input_ids[0]) == 2


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
