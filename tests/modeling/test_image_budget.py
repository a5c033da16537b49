"""How many patches an image has, and batches filled by tokens: against images encoded one by one, and stock."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModel, Siglip2ImageProcessorPil, pipeline

from modeling_siglip_ext import (
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    encode_images,
    encoding,
    train_tokenizer,
)
from modeling_siglip_ext.image_budget import ImageBudget, collate, fill_batches, patches_of
from support.images import noise
from support.models import TINY, make_config


PATCH, MOST = 4, 16
SIZES = [(30, 40), (9, 7), (64, 5), (5, 64), (16, 16), (3, 3), (100, 30), (8, 8), (1, 50), (50, 1), (12, 20)]
IMAGES = [noise(width, height, seed=width) for width, height in SIZES]


@pytest.fixture(scope="module")
def parts() -> tuple[SiglipExtModel, SiglipExtProcessor]:
    torch.manual_seed(0)
    vision = {**TINY, "naflex": True, "num_patches": MOST, "patch_size": PATCH, "image_size": None}
    model = SiglipExtModel(make_config({"vocab_size": 300, "max_position_embeddings": 8}, vision)).eval()
    images = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=MOST)
    return model, SiglipExtProcessor(images, train_tokenizer(["red", "blue"], vocab_size=300, max_length=8))


def one_by_one(model, processor, images, **options) -> np.ndarray:
    return np.concatenate([encode_images(model, processor, [image], **options) for image in images])


@pytest.mark.parametrize("kind", [SiglipExtNaflexImageProcessor, Siglip2ImageProcessorPil])
@given(width=st.integers(1, 300), height=st.integers(1, 300), most=st.integers(1, 64))
def test_without_upscaling_an_image_keeps_its_own_grid(kind, width, height, most):
    images = kind(patch_size=PATCH, max_num_patches=999)
    inputs = ImageBudget(most, upscale=False).prepare(images, Image.new("RGB", (width, height)))
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    if rows * columns <= most:
        assert inputs["spatial_shapes"].tolist() == [[rows, columns]]
    else:  # as ever
        stock = images(images=[Image.new("RGB", (width, height))], max_num_patches=most, return_tensors="pt")
        assert torch.equal(inputs["spatial_shapes"], stock["spatial_shapes"])
    assert patches_of(inputs) <= most


def test_an_image_of_whole_patches_keeps_its_pixels():
    image = noise(3 * PATCH, 2 * PATCH)
    images = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=999)
    patches = ImageBudget(upscale=False).prepare(images, image)["pixel_values"]
    cut = np.asarray(image, np.float32).reshape(2, PATCH, 3, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(1, 6, -1)
    np.testing.assert_allclose(patches.numpy(), cut / 127.5 - 1, rtol=0, atol=1e-6)


@given(
    lengths=st.lists(st.integers(1, 100), max_size=60),
    batch_tokens=st.integers(100, 500),
)
def test_batches_hold_every_image_once_within_their_tokens(lengths, batch_tokens):
    batches = fill_batches(dict(enumerate(lengths)), batch_tokens)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    in_order = [lengths[place] for batch in batches for place in batch]
    assert in_order == sorted(lengths)
    assert all(len(batch) * max(lengths[place] for place in batch) <= batch_tokens for batch in batches)
    firsts = [lengths[batch[0]] for batch in batches[1:]]
    # none of them would have held the next image, too
    assert all((len(batch) + 1) * first > batch_tokens for batch, first in zip(batches, firsts))


@pytest.mark.parametrize("upscale", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_filled_by_tokens_give_every_image_what_it_has_alone(parts, upscale, workers, monkeypatch):
    model, processor = parts
    seen = []
    embed = encoding.embed

    def watched(model, kind, inputs, **options):
        seen.append(tuple(inputs["pixel_values"].shape[:2]))
        return embed(model, kind, inputs, **options)

    monkeypatch.setattr(encoding, "embed", watched)
    options = {"max_num_patches": 20, "upscale": upscale}
    many = IMAGES * 12  # more than one stretch
    found = encode_images(model, processor, many, batch_tokens=45, workers=workers, **options)
    assert all(images * length <= 45 for images, length in seen)
    assert len({length for _, length in seen}) > 1
    expected = np.tile(one_by_one(model, processor, IMAGES, **options), (12, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    by_count = encode_images(model, processor, many, batch_size=7, **options)
    np.testing.assert_allclose(by_count, expected, rtol=0, atol=1e-6)


def test_a_stock_model_gives_the_same(parts, tmp_path):
    """But for grids of one column: torch's antialiased resize on a CPU gives all their positions the same value."""
    model, processor = parts
    model.save_pretrained(tmp_path)
    stock, images = AutoModel.from_pretrained(tmp_path), Siglip2ImageProcessorPil(patch_size=PATCH)
    options = {"max_num_patches": 20, "upscale": False, "batch_tokens": 45}
    wider = [image for image, size in zip(IMAGES, SIZES) if size not in ((5, 64), (1, 50), (3, 3))]
    np.testing.assert_allclose(
        encode_images(stock, images, wider, **options),
        encode_images(model, processor, wider, **options),
        rtol=0,
        atol=1e-5,
    )


def test_more_patches_are_those_of_a_processor_that_says_so(parts):
    model, processor = parts
    other = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=40)
    found = encode_images(model, processor, IMAGES, max_num_patches=40)
    assert np.array_equal(found, encode_images(model, other, IMAGES))
    assert not np.array_equal(found, encode_images(model, processor, IMAGES))


def test_broken_images_cost_their_rows_in_any_batch(parts, caplog):
    model, processor = parts
    images = [b"no", *IMAGES[:4], "nowhere.jpg", *IMAGES[4:]]
    with caplog.at_level(logging.WARNING):
        found = encode_images(model, processor, images, batch_tokens=MOST)
    assert np.isnan(found).any(1).nonzero()[0].tolist() == [0, 5]
    np.testing.assert_allclose(found[[1, 2, 3, 4]], one_by_one(model, processor, IMAGES[:4]), rtol=0, atol=1e-6)
    assert "2 of 13 images cannot be read" in caplog.text
    assert np.isnan(encode_images(model, processor, [b"no"] * 3, batch_tokens=MOST)).all()
    with pytest.raises(ValueError, match=r"image 4: 'nowhere\.jpg'"):
        encode_images(model, processor, images[1:] * 2, batch_tokens=MOST, errors="raise")


def test_strips_and_specks(parts):
    """A side of one pixel, 1:1000, and the smallest budget."""
    model, processor = parts
    images = [noise(1, 1), noise(1, 300), noise(300, 1), noise(1000, 1), noise(1, 1000), noise(3, 900)]
    for options in ({}, {"upscale": False}, {"max_num_patches": 1}, {"max_num_patches": 3, "upscale": False}):
        found = encode_images(model, processor, images, **options)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(
            encode_images(model, processor, images, batch_tokens=64, **options), found, rtol=0, atol=1e-6
        )


def test_bad_budgets_are_one_sentence(parts):
    model, processor = parts
    for name in ("max_num_patches", "batch_tokens"):
        for value in (0, -3, 1.5, True):
            with pytest.raises(ValueError, match=f"{name}={value} must be a whole number of patches, at least 1"):
                encode_images(model, processor, IMAGES, **{name: value})
    with pytest.raises(ValueError, match="batch_tokens=15 cannot hold an image of max_num_patches=16"):
        encode_images(model, processor, IMAGES, batch_tokens=15)
    fixed = SiglipExtModel(make_config()).eval()
    images = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    for options in ({"max_num_patches": 9}, {"upscale": False}, {"batch_tokens": 99}):
        with pytest.raises(ValueError, match="are for NaFlex models: this one takes images of one size"):
            encode_images(fixed, images, IMAGES, **options)
    prepared = [ImageBudget().prepare(processor.image_processor, image) for image in IMAGES[:2]]
    inputs = collate(prepared)
    inputs["pixel_attention_mask"][1, 0] = 0
    with pytest.raises(ValueError, match="of image 1 marks 15 patches and contradicts its spatial_shapes"):
        model.get_image_features(**inputs)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_pipeline_takes_the_same_settings(parts, batch_size):
    model, processor = parts
    own = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    classify = pipeline("zero-shot-image-classification", model=model, **own)
    labels = ["red", "blue", "green"]
    texts = encoding.encode_texts(model, processor, [f"This is a photo of {label}." for label in labels])
    scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
    for options in ({}, {"max_num_patches": 30}, {"upscale": False, "max_num_patches": 30}):
        found = classify(IMAGES, candidate_labels=labels, batch_size=batch_size, **options)
        logits = encode_images(model, processor, IMAGES, **options) @ texts.T * scale + bias
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        for row, expected in zip(found, scores):
            by_label = {one["label"]: one["score"] for one in row}
            np.testing.assert_allclose([by_label[label] for label in labels], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="max_num_patches=0 must be a whole number"):
        classify(IMAGES[0], candidate_labels=labels, max_num_patches=0)


def test_the_pipeline_of_a_fixed_model_says_so():
    model = SiglipExtModel(make_config({"vocab_size": 300}))
    tokenizer = train_tokenizer(["red"], vocab_size=300, max_length=8)
    images = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    classify = pipeline("zero-shot-image-classification", model=model, image_processor=images, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="are for NaFlex models"):
        classify(IMAGES[0], candidate_labels=["red"], upscale=False)
