"""Images of any shape on their way to a batch: the patches of the stock processor, from whatever is read."""

import io
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Siglip2ImageProcessorPil

from modeling_siglip_ext import SiglipExtNaflexImageProcessor, SiglipExtProcessor
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.lengths import drawn_length
from modeling_siglip_ext.training.data.loaders import one_batch_at_a_time, stream_loader
from modeling_siglip_ext.training.data.pixel_cache import PatchCache, fits_cache
from modeling_siglip_ext.training.data.pixels import normalized
from modeling_siglip_ext.training.data.samples import ReportingCollator
from modeling_siglip_ext.training.data.streaming import ImageTextStream
from modeling_siglip_ext.training.data.tar_shards import TarShards
from support.images import noise
from support.shards import write_tar


PATCH, LENGTHS = 4, (6, 16, 30)
# width and height: a single pixel, lines, strips, and what is usual
SIZES = ((1, 1), (1, 1000), (1000, 1), (1, 40), (200, 3), (30, 20), (64, 64), (17, 90), (401, 299))


def picture(width: int, height: int) -> Image.Image:
    return noise(width, height, width * 1009 + height)


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    picture(width, height).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    captions = [f"a picture of {width} by {height}" for width, height in SIZES]
    return Dataset.from_dict({"image": [picture(*size) for size in SIZES], "caption": captions})


@pytest.fixture(scope="module")
def naflex(processor) -> SiglipExtProcessor:
    images = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=16)
    return SiglipExtProcessor(images, processor.tokenizer)


def expected(length: int, sizes=SIZES) -> dict[str, torch.Tensor]:
    """What the stock processor makes of the images."""
    stock = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=length)
    return dict(stock([picture(*size) for size in sizes], return_tensors="pt"))


def check(batch: dict, length: int, sizes=SIZES) -> None:
    for name, values in expected(length, sizes).items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=1e-6, check_dtype=name != "spatial_shapes")


@pytest.mark.parametrize("patch_size", [4, 16])
def test_our_image_processor_is_the_stock_one(patch_size):
    draw = random.Random(0)
    sizes = [*SIZES, *((draw.randint(1, 300), draw.randint(1, 300)) for _ in range(30))]
    for length in (1, 5, 64):
        settings = {"patch_size": patch_size, "max_num_patches": length}
        ours, stock = SiglipExtNaflexImageProcessor(**settings), Siglip2ImageProcessorPil(**settings)
        for size in sizes:
            for image in (picture(*size), picture(*size).convert("L"), np.moveaxis(np.asarray(picture(*size)), 2, 0)):
                found, wanted = (one(image, return_tensors="pt", do_convert_rgb=True) for one in (ours, stock))
                assert found.keys() == wanted.keys()
                assert all(torch.equal(found[name], wanted[name]) for name in wanted), size


@pytest.mark.parametrize("cache_gib", [0, 1])
@pytest.mark.parametrize("length", LENGTHS)
def test_batches_equal_the_stock_processor(shapes, naflex, cache_gib, length):
    dataset = ImageTextDataset(
        shapes, image_processor=naflex.image_processor, naflex_lengths=LENGTHS, cache_gib=cache_gib
    )
    assert (dataset.cache is None) == (cache_gib == 0)
    indices = [(index, length) for index in range(len(SIZES))]
    batch = ImageTextCollator(naflex)(dataset.__getitems__(indices))
    check(batch, length)
    raw = ImageTextCollator(naflex, uint8=True)([dataset[index] for index in indices])
    assert raw["pixel_values"].dtype == torch.uint8
    assert torch.equal(
        normalized(raw["pixel_values"], naflex.image_processor, raw["pixel_attention_mask"]), batch["pixel_values"]
    )


@pytest.mark.parametrize("cache_gib", [0, 1])
@pytest.mark.parametrize("length", LENGTHS)
def test_small_images_keep_their_patches(shapes, naflex, cache_gib, length):
    settings = {"image_processor": naflex.image_processor, "naflex_lengths": LENGTHS, "cache_gib": cache_gib}
    dataset = ImageTextDataset(shapes, upscale=False, **settings)
    batch = ImageTextCollator(naflex)(dataset.__getitems__([(index, length) for index in range(len(SIZES))]))
    assert batch["pixel_values"].shape[:2] == (len(SIZES), length)
    for row, (width, height) in enumerate(SIZES):
        own = min(length, -(-width // PATCH) * -(-height // PATCH))
        stock = expected(own, [(width, height)])
        assert batch["spatial_shapes"][row].tolist() == stock["spatial_shapes"][0].tolist()
        torch.testing.assert_close(batch["pixel_values"][row, :own], stock["pixel_values"][0], rtol=0, atol=1e-6)
        assert not batch["pixel_values"][row, own:].any()
        assert batch["pixel_attention_mask"][row, :own].tolist() == stock["pixel_attention_mask"][0].tolist()
        assert not batch["pixel_attention_mask"][row, own:].any()


def test_small_images_of_a_stream_keep_theirs(shapes, naflex, tmp_path):
    members = [
        (f"{place}.{suffix}", content)
        for place, (size, caption) in enumerate(zip(SIZES, shapes["caption"]))
        for suffix, content in (("png", png(*size)), ("txt", caption.encode()))
    ]
    write_tar(tmp_path / "0.tar", members)
    settings = {"image_processor": naflex.image_processor, "naflex_lengths": [16], "upscale": False}
    stream = ImageTextStream(TarShards(str(tmp_path / "0.tar")), **settings)
    stream.assign(0, 1, len(SIZES), 0)
    dataset = ImageTextDataset(shapes, **settings)
    found = {sample["caption"]: sample for sample in next(iter(stream)) or []}
    assert found.keys() == set(shapes["caption"])
    for index, caption in enumerate(shapes["caption"]):
        wanted = dataset[index, 16]
        assert torch.equal(found[caption]["spatial_shape"], wanted["spatial_shape"])
        assert torch.equal(found[caption]["pixels"], wanted["pixels"])


@pytest.mark.parametrize("uint8", [False, True])
def test_without_lengths_the_processor_says_how_many(shapes, naflex, uint8):
    collator = ImageTextCollator(naflex, uint8=uint8)
    for examples in (
        [ImageTextDataset(shapes, image_processor=naflex.image_processor)[index] for index in range(len(SIZES))],
        [ImageTextDataset(shapes)[index] for index in range(len(SIZES))],
        list(shapes),
    ):
        batch = collator(examples)
        if uint8:
            batch["pixel_values"] = normalized(
                batch["pixel_values"], naflex.image_processor, batch["pixel_attention_mask"]
            )
        check(batch, 16)


def test_a_large_batch_is_held_once(shapes, naflex):
    dataset = ImageTextDataset(shapes, image_processor=naflex.image_processor, cache_gib=0)
    items = dataset.__getitems__([0, 1, 2])
    batch = ImageTextCollator(naflex, uint8=True)(items)
    assert batch["pixel_values"].data_ptr() == items[0]["pixels"].data_ptr()


def test_the_cache_stays_within_its_limit(shapes, naflex):
    images = naflex.image_processor
    bytes_at_most = len(SIZES) * sum(LENGTHS) * 3 * PATCH**2
    assert fits_cache(len(SIZES), images, bytes_at_most / 2**30, LENGTHS)
    assert not fits_cache(len(SIZES), images, (bytes_at_most - 1) / 2**30, LENGTHS)
    cache = ImageTextDataset(shapes, image_processor=images, naflex_lengths=[*LENGTHS, LENGTHS[0]]).cache
    assert isinstance(cache, PatchCache)
    assert cache.patches.numel() == bytes_at_most
    grids = [expected(length)["spatial_shapes"].prod(1).sum() for length in LENGTHS]
    assert cache.end == sum(grids), "no padding is kept"


def test_a_bad_image_is_left_out_of_the_cache(naflex):
    images = [picture(20, 30), picture(40, 10), picture(9, 9)]
    rows = Dataset.from_dict({"image": images, "caption": ["one", "two", "three"]})
    rows = rows.cast_column("image", type(rows.features["image"])(decode=False))
    stored = [{"bytes": b"no", "path": None} if place == 1 else row["image"] for place, row in enumerate(rows)]
    rows = Dataset.from_dict({"image": stored, "caption": rows["caption"]}).cast_column(
        "image", rows.features["image"]
    )
    dataset = ImageTextDataset(rows, image_processor=naflex.image_processor, max_bad_fraction=0.5)
    assert dataset.captions == [["one"], ["three"]]
    batch = ImageTextCollator(naflex)([dataset[0], dataset[1]])
    check(batch, 16, [(20, 30), (9, 9)])


def test_lengths_need_a_naflex_processor(shapes, processor):
    for images in (None, processor.image_processor):
        with pytest.raises(ValueError, match="naflex_lengths needs a NaFlex model"):
            ImageTextDataset(shapes, image_processor=images, naflex_lengths=[16])
        with pytest.raises(ValueError, match="upscale=False needs a NaFlex model"):
            ImageTextDataset(shapes, image_processor=images, upscale=False)


@pytest.mark.parametrize("lengths", [[], [0], [16, 2.5], [True]])
def test_lengths_are_whole_numbers(shapes, naflex, lengths):
    with pytest.raises(ValueError, match="naflex_lengths"):
        ImageTextDataset(shapes, image_processor=naflex.image_processor, naflex_lengths=lengths)


def lengths_of(batches) -> list[int]:
    return [batch["pixel_values"].shape[1] for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_has_the_length_that_its_number_says(shapes, naflex, workers):
    dataset = ImageTextDataset(shapes, image_processor=naflex.image_processor, naflex_lengths=LENGTHS, cache_gib=0)
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    plain = DataLoader(dataset, 2, drop_last=True, collate_fn=ImageTextCollator(naflex), **settings)
    loader = one_batch_at_a_time(plain, LENGTHS, seed=7)
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert lengths_of(batches) == [drawn_length(LENGTHS, 7, f"{epoch}/{number}") for number in range(4)]
        for number, batch in enumerate(batches):
            check(batch, batch["pixel_values"].shape[1], SIZES[2 * number : 2 * number + 2])


def test_lengths_are_drawn_evenly():
    drawn = [drawn_length((1, 2, 2, 3), 0, f"0/{number}") for number in range(4000)]
    for length, share in ((1, 0.25), (2, 0.5), (3, 0.25)):
        assert abs(drawn.count(length) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert drawn != [drawn_length((1, 2, 2, 3), 1, f"0/{number}") for number in range(4000)]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_same_lengths_in_all_processes_and_after_a_resume(naflex, tmp_path, workers):
    for number in range(4):
        members = [
            (f"{number}{place}.{suffix}", content)
            for place, size in enumerate(SIZES)
            for suffix, content in (("png", png(*size)), ("txt", f"{size}".encode()))
        ]
        write_tar(tmp_path / f"{number}.tar", members)

    def batches(rank: int, resumed_after: int = 0, positions=None) -> list[dict]:
        stream = ImageTextStream(
            TarShards(str(tmp_path / "*.tar")), image_processor=naflex.image_processor, naflex_lengths=LENGTHS, seed=5
        )
        collator = ReportingCollator(ImageTextCollator(naflex))
        loader = iter(stream_loader(stream, 3, collator, rank, 2, num_workers=workers))
        if resumed_after:
            stream.resume(positions, resumed_after)
            loader = iter(stream_loader(stream, 3, collator, rank, 2, num_workers=workers))
        return [next(loader) for _ in range(8)]

    first, second = batches(0), batches(1)
    wanted = [drawn_length(LENGTHS, 5, str(number)) for number in range(8)]
    assert lengths_of(first) == lengths_of(second) == wanted
    positions = {}
    for batch in first[:5]:
        worker, *position = batch["samples"]["position"]
        positions[worker] = tuple(position)
    resumed = batches(0, 5, positions)
    assert all(batch == {} for batch in resumed[:5])
    for again, once in zip(resumed[5:], first[5:]):
        assert torch.equal(again["pixel_values"], once["pixel_values"])
        assert torch.equal(again["input_ids"], once["input_ids"])
