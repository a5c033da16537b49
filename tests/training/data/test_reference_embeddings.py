"""Embeddings of a reference: those of the stock model, for the image and the caption that an epoch draws."""

import itertools

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtNaflexImageProcessor, SiglipExtProcessor
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.encoding import encode_images
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, precompute
from modeling_siglip_ext.training.data.image_embeddings import EmbeddingTextDataset
from modeling_siglip_ext.training.data.reference_embeddings import (
    REFERENCE,
    check_reference_embeddings,
    load_reference_embeddings,
)


COLUMNS = ["caption", "captions"]


@pytest.fixture
def saved(our_model, processor, tmp_path) -> str:
    with torch.no_grad():
        our_model.logit_scale.fill_(1 / 3)
        our_model.logit_bias.fill_(-0.1)
    our_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture(scope="module")
def some(rows) -> Dataset:
    """The same images; one has no caption, another an empty one among its own."""
    captions = list(rows["captions"])
    captions[2], captions[5] = [], ["", *captions[5], " "]
    short = [None if row in (2, 3) else caption for row, caption in enumerate(rows["caption"])]
    return rows.remove_columns(COLUMNS).add_column("captions", captions).add_column("caption", short)


@pytest.fixture
def folder(saved, some, tmp_path):
    """Of whose parts one has images and captions."""
    precompute(saved, some, tmp_path / "reference", caption_column=COLUMNS, batch_size=5, part_rows=10)
    return tmp_path / "reference"


@torch.no_grad()
def expected(saved: str, processor, images: list, texts: list[str]) -> torch.Tensor:
    """(B, 2, D), of the stock model."""
    model = AutoModel.from_pretrained(saved).eval()
    tokens = processor.tokenizer(texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    found = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    return torch.stack([found.image_embeds, found.text_embeds], 1)


def test_each_epoch_has_those_of_its_captions(folder, saved, some, processor):
    reference = load_reference_embeddings(folder, some, caption_column=COLUMNS)
    assert (reference.scale, reference.bias) == (torch.tensor(1 / 3).item(), torch.tensor(-0.1).item())
    everything = ImageTextDataset(some, caption_column=COLUMNS, max_bad_fraction=0.1, reference=reference)
    assert len(everything) == 15
    # a part of the rows that is in another order and knows its places, with resized images in memory
    places = [9, 5, 3, 2, 14]
    part = ImageTextDataset(
        some.select(places),
        caption_column=COLUMNS,
        numbers=places,
        image_processor=processor.image_processor,
        max_bad_fraction=0.5,
        reference=reference,
    )
    others = ImageTextDataset(
        some, caption_column=COLUMNS, max_bad_fraction=0.1, reference=reference, shuffle_captions=True
    )
    drawn = set()
    for dataset, epoch in itertools.product((everything, part, others), range(4)):
        dataset.set_epoch(epoch)
        items = [dataset[index] for index in range(len(dataset))]
        batch = ImageTextCollator(processor)(items)
        numbers = [row if dataset is not part else places[row] for row in dataset.rows]
        wanted = expected(saved, processor, some.select(numbers)["image"][:], [item["caption"] for item in items])
        torch.testing.assert_close(batch[REFERENCE], wanted, atol=1e-6, rtol=1e-5)
        drawn |= {item["caption"] for item in items}
    assert len(drawn) > 30  # of 45, three of each image


def test_a_second_call_continues(folder, saved, some):
    paths = sorted(folder.glob("part-*"))
    assert len(paths) == 8  # 16 images and 59 captions
    before = load_file(paths[1])["embeds"].clone()
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 8 parts.*e.g. part-00001.*reference_name_or_path"):
        check_reference_embeddings(folder)
    precompute(saved, some, folder, caption_column=COLUMNS, batch_size=5, part_rows=10)
    assert torch.equal(load_file(paths[1])["embeds"], before)


def test_what_they_are_not_of_is_refused(folder, saved, some, our_model, processor, tmp_path):
    for rows, columns, reason in (
        (some.select(range(15)), COLUMNS, r"captions \(there .*images \(there .*rows \(there 75, now 70\): use the"),
        (
            some.select([1, 0, *range(2, 16)]),
            COLUMNS,
            r"other captions \(there .*images \(there [^,]*, now [^,]*\): use",
        ),
        (some, COLUMNS[::-1], r"other captions \(there [^,]*, now [^,]*\): use the dataset and the columns"),
        (some, "captions", r"captions \(there .*rows \(there 75, now 61\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_reference_embeddings(folder, rows, caption_column=columns)
    with pytest.raises(FileNotFoundError, match="precompute --reference_name_or_path"):
        load_reference_embeddings(tmp_path / "none", some, caption_column=COLUMNS)
    precompute(saved, some, tmp_path / "images")
    with pytest.raises(ValueError, match="embeddings of an image tower, not of a reference model: run"):
        load_reference_embeddings(tmp_path / "images", some, caption_column=COLUMNS)

    for name in ("text_model.head.bias", "vision_model.head.probe", "logit_bias"):
        other = SiglipExtModel.from_pretrained(saved)
        other.get_parameter(name).data += 1
        other.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=r"(text_weights|weights|logit_bias) \(there .*another output_dir"):
            precompute(str(tmp_path / name), some, folder, caption_column=COLUMNS, part_rows=10)
    clip = SiglipExtModel(SiglipExtConfig(**our_model.config.to_dict() | {"loss_type": "softmax"}))
    clip.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="the reference was not trained with the sigmoid loss"):
        precompute(str(tmp_path / "clip"), some, tmp_path / "of-clip", caption_column=COLUMNS)
    assert not (tmp_path / "of-clip").exists()
    with pytest.raises(ValueError, match="caption_column"):
        precompute(saved, some, tmp_path / "of-clip", caption_column="text")


def test_another_folder_is_another_reference(folder, saved, some, tmp_path):
    """But not one whose parts are cut in another way."""
    for name, settings in (("parts", {"part_rows": 50}), ("dtype", {"dtype": torch.bfloat16})):
        precompute(saved, some, tmp_path / name, caption_column=COLUMNS, **settings)
    first, same, other = (
        load_reference_embeddings(path, some, caption_column=COLUMNS).identity
        for path in (folder, tmp_path / "parts", tmp_path / "dtype")
    )
    assert first == same != other


def test_images_that_it_could_not_see_are_left_out(saved, rows, tmp_path):
    images = [row["image"] for row in rows.cast_column("image", Image(decode=False))]
    broken = Dataset.from_dict({
        "image": [*images[:3], {"bytes": b"no image", "path": None}, *images[4:]],
        "caption": rows["caption"],
    }).cast_column("image", Image())  # fmt: skip
    precompute(saved, broken, tmp_path / "reference", caption_column="caption", max_bad_fraction=0.1)
    reference = load_reference_embeddings(tmp_path / "reference", broken)
    dataset = ImageTextDataset(broken, max_bad_fraction=0.1, reference=reference)
    assert dataset.rows == [row for row in range(16) if row != 3]
    assert dataset.left_out[0][0] == "example 3"
    assert all(dataset[index][REFERENCE].isfinite().all() for index in range(15))


def test_a_naflex_reference_sees_so_many_patches(saved, rows, processor, tmp_path):
    SiglipExtModel.from_pretrained(saved, naflex=True).save_pretrained(tmp_path / "naflex")
    images = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    SiglipExtProcessor(images, processor.tokenizer).save_pretrained(str(tmp_path / "naflex"))
    name = str(tmp_path / "naflex")
    precompute(name, rows, tmp_path / "reference", caption_column="caption", budget=ImageBudget(9))
    found = load_reference_embeddings(tmp_path / "reference", rows).embeds[:16]
    model = SiglipExtModel.from_pretrained(name)
    torch.testing.assert_close(
        found, torch.from_numpy(encode_images(model, images, rows["image"][:], max_num_patches=9))
    )


def test_beside_embeddings_of_a_locked_tower(folder, saved, some):
    """No image is at hand then, and the reference needs none."""
    reference = load_reference_embeddings(folder, some, caption_column=COLUMNS)
    settings = {"caption_column": COLUMNS, "max_bad_fraction": 0.1, "reference": reference}
    embeds, valid = store.read(folder)[0][:16], torch.ones(16, dtype=torch.bool)
    datasets = ImageTextDataset(some, **settings), EmbeddingTextDataset(some, embeds, valid, **settings)
    for index in range(15):
        one, other = (dataset[index][REFERENCE] for dataset in datasets)
        assert torch.equal(one, other)
    assert normalize(embeds).allclose(embeds)
