"""Datasets and collator: columns, captions, cached pixels, folders."""

import csv
from collections import Counter

import pytest
import torch
from datasets import Dataset, DatasetDict

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, ImageTextStream, load_image_folder


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_batches_equal_the_processor(rows, processor, cache_gib):
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor, cache_gib=cache_gib)
    assert (dataset.cache is None) == (cache_gib == 0)
    batch = ImageTextCollator(processor)([dataset[i] for i in range(5)])
    expected = processor(images=list(rows["image"][:5]), text=list(rows["caption"][:5]), return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert batch["return_loss"] is True
    assert set(batch) == {"pixel_values", "input_ids", "return_loss"}


def test_cached_pixels_are_resized_as_the_processor_does(rows, processor):
    images = [image.resize((37, 23)) for image in rows["image"]]
    larger = Dataset.from_dict({"image": images, "caption": rows["caption"]})
    dataset = ImageTextDataset(larger, image_processor=processor.image_processor)
    batch = ImageTextCollator(processor)([dataset[i] for i in range(16)])
    expected = processor.image_processor(list(larger["image"]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-6, rtol=0)


def test_texts_are_full_length_and_truncated(rows, processor):
    collate = ImageTextCollator(processor, max_length=5)
    batch = collate([{"image": rows[0]["image"], "caption": text} for text in ("a red square " * 20, "a")])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][0, -1] == processor.tokenizer.eos_token_id


def test_missing_columns_are_reported_with_those_present(rows, processor):
    with pytest.raises(ValueError, match=r"caption_column='text'.*'image', 'caption', 'captions'"):
        ImageTextDataset(rows, caption_column="text")
    with pytest.raises(ValueError, match=r"image_column='picture'.*'image', 'caption', 'captions'"):
        ImageTextDataset(rows, image_column="picture")
    with pytest.raises(ValueError, match=r"caption_column='caption'.*'image', 'name'"):
        ImageTextCollator(processor)([{"image": rows[0]["image"], "name": "red"}])


def test_what_is_no_map_style_dataset_is_refused_with_the_way_to_one(rows):
    for wrong, remedy in (
        (DatasetDict(train=rows, test=rows), "a DatasetDict: choose one of its splits: 'train', 'test'"),
        (rows.to_iterable_dataset(), "a stream: give it to ImageTextStream"),
        ("my-images", "a str: read a folder with load_image_folder"),
        (list(rows), "a list: make one with datasets.Dataset.from_list"),
    ):
        with pytest.raises(TypeError, match=f"takes a datasets.Dataset, got {remedy}"):
            ImageTextDataset(wrong)
    for wrong, remedy in ((rows, "give it to ImageTextDataset"), ("a.tar", "TarShards")):
        with pytest.raises(TypeError, match=f"^ImageTextStream takes a streaming dataset .*{remedy}"):
            ImageTextStream(wrong)


@pytest.mark.parametrize("caption", ["", "  ", None, [], [""]])
def test_an_example_without_caption_is_named(rows, caption):
    values = [["a"], ["b"], caption if isinstance(caption, list) or caption is None else [caption]]
    bare = Dataset.from_dict({"image": rows["image"][:3], "caption": values})
    with pytest.raises(ValueError, match="example 2: no caption"):
        ImageTextDataset(bare)


def test_captions_of_another_type_are_named(rows):
    numbers = Dataset.from_dict({"image": rows["image"][:2], "caption": [1, 2]})
    with pytest.raises(ValueError, match="example 0: a caption must be a string"):
        ImageTextDataset(numbers)


def test_one_caption_is_drawn_per_epoch(rows):
    def draws(seed: int, epochs: range) -> list[list[str]]:
        dataset = ImageTextDataset(rows, caption_column="captions", seed=seed)
        drawn = []
        for epoch in epochs:
            dataset.set_epoch(epoch)
            drawn.append([dataset[i]["caption"] for i in range(len(dataset))])
        return drawn

    first = draws(0, range(60))
    assert first == draws(0, range(60))
    assert first[30:] == draws(0, range(30, 60)), "an epoch's captions must not depend on the epochs before"
    assert first != draws(1, range(60))
    for index, row in enumerate(rows):
        counts = Counter(epoch[index] for epoch in first)
        assert set(counts) == set(row["captions"])
        assert min(counts.values()) >= 7  # 20 expected; P(< 7) < 1e-4 for one of the 48


def test_several_caption_columns(rows):
    dataset = ImageTextDataset(rows, caption_column=["caption", "captions"])
    assert dataset.captions[0] == [rows[0]["caption"], *rows[0]["captions"]]


def test_shuffled_captions_leave_none_in_place(rows):
    dataset = ImageTextDataset(rows, shuffle_captions=True, seed=3)
    shuffled = [dataset[i]["caption"] for i in range(len(dataset))]
    assert sorted(shuffled) == sorted(rows["caption"])
    assert all(moved != own for moved, own in zip(shuffled, rows["caption"]))


def test_a_tokenizer_without_length_needs_one(processor):
    tokenizer = processor.tokenizer
    length = tokenizer.model_max_length
    tokenizer.model_max_length = int(1e30)
    try:
        with pytest.raises(ValueError, match="max_length"):
            ImageTextCollator(processor)
        assert ImageTextCollator(processor, max_length=7).max_length == 7
    finally:
        tokenizer.model_max_length = length


def test_folder_with_text_files(rows, tmp_path):
    for index in range(4):
        rows[index]["image"].save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"caption {index}\n\nanother {index}\n", encoding="utf-8")
    loaded = load_image_folder(tmp_path)
    assert loaded["caption"][2] == ["caption 2", "another 2"]
    assert loaded[3]["image"].convert("RGB").tobytes() == rows[3]["image"].tobytes()
    ImageTextDataset(loaded)


def test_caption_files_have_a_caption_a_line(rows, tmp_path):
    rows[0]["image"].save(tmp_path / "0.JPG")
    (tmp_path / "0.txt").write_bytes("  one \r\n\r\ntwo\u2028still two\n".encode())
    assert load_image_folder(tmp_path)["caption"][:] == [["one", "two\u2028still two"]]


def test_folder_with_metadata(rows, tmp_path, monkeypatch):
    for index in range(4):
        rows[index]["image"].save(tmp_path / f"{index}.png")
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows([f"{index}.png", f"caption {index}"] for index in range(4))
    loaded = load_image_folder(tmp_path)
    assert sorted(loaded["caption"]) == [f"caption {index}" for index in range(4)]
    ImageTextDataset(loaded)


def test_bad_folders(rows, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        load_image_folder(tmp_path)
    rows[0]["image"].save(tmp_path / "lonely.png")
    with pytest.raises(ValueError, match=r"1 of 1 images.*lonely\.png"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_a_batch_is_not_copied(rows, processor, cache_gib):
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor, cache_gib=cache_gib)
    items = dataset.__getitems__([3, 1, 15])
    batch = ImageTextCollator(processor, uint8=True)(items)
    assert batch["pixel_values"].data_ptr() == items[0]["pixels"].data_ptr()
    assert torch.equal(batch["pixel_values"], torch.stack([dataset[n]["pixels"] for n in (3, 1, 15)]))
    for other in (items[::-1], items[:2], [dataset[n] for n in (3, 1, 15)]):
        found = ImageTextCollator(processor, uint8=True)(other)["pixel_values"]
        assert torch.equal(found, torch.stack([item["pixels"] for item in other]))
