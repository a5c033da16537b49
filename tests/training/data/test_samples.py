"""Bad samples of map-style data: left out, replaced, counted, and the end of the run past the limit."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from hypothesis import given
from hypothesis import strategies as st

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.samples import SkipCounter, TooManyBadSamples, UnusableRowError, as_captions
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


@pytest.fixture
def broken(rows) -> Dataset:
    """16 rows; image 5 is no image, caption 9 is empty."""
    stored = rows.cast_column("image", Image(decode=False))
    images = [row["image"] for row in stored]
    images[5] = {"bytes": b"no image", "path": None}
    captions = list(rows["caption"])
    captions[9] = " "
    return Dataset.from_dict({"image": images, "caption": captions}).cast_column("image", Image())


def test_a_cached_dataset_leaves_them_out(broken, processor):
    dataset = ImageTextDataset(broken, image_processor=processor.image_processor, max_bad_fraction=0.2)
    assert dataset.rows == [n for n in range(16) if n not in (5, 9)]
    assert len(dataset) == 14
    whole = ImageTextDataset(broken.select([14]), image_processor=processor.image_processor)
    assert torch.equal(dataset[12]["pixels"], whole[0]["pixels"])
    assert dataset[12]["caption"] == broken[14]["caption"]


def test_otherwise_the_next_one_takes_its_place(broken, processor):
    dataset = ImageTextDataset(broken, image_processor=processor.image_processor, cache_gib=0, max_bad_fraction=0.2)
    assert len(dataset) == 15
    item = dataset[5]
    assert item["sample"]["name"] == 6
    assert item["sample"]["read"] == 2
    assert item["sample"]["skipped"][0][0] == "example 5"
    assert item["caption"] == broken[6]["caption"]


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_the_limit(broken, processor, cache_gib):
    with pytest.raises(TooManyBadSamples, match=r"1 of 16 samples are bad[\s\S]*example 9: no caption"):
        ImageTextDataset(broken, image_processor=processor.image_processor, cache_gib=cache_gib)
    without = broken.select([n for n in range(16) if n != 9])
    strict = {"image_processor": processor.image_processor, "max_bad_fraction": 0.0}
    with pytest.raises(ValueError, match="example 5: 8 bytes is not an image that PIL knows"):
        ImageTextDataset(without, cache_gib=cache_gib, **strict)[5]


def test_the_trainer_counts(broken, processor, our_model, arguments):
    dataset = ImageTextDataset(broken, cache_gib=0, max_bad_fraction=0.2)
    trainer = SiglipExtTrainer(
        model=our_model,
        args=arguments(max_steps=4, per_device_train_batch_size=15),
        train_dataset=dataset,
        data_collator=ImageTextCollator(processor),
    )
    trainer.train()
    assert trainer.state.log_history[3]["samples_skipped"] == 4, "once an epoch"


def test_a_non_finite_loss_stops_the_run_and_names_the_batch(processor, rows, our_model, arguments):
    class Poisoned(ImageTextDataset):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            if index == 11:
                our_model.text_model.head.bias.data.fill_(torch.nan)
            return item

    trainer = SiglipExtTrainer(
        model=our_model,
        args=arguments(
            max_steps=8, logging_steps=4, save_strategy="steps", save_steps=1, train_sampling_strategy="sequential"
        ),
        train_dataset=Poisoned(rows),
        data_collator=ImageTextCollator(processor),
    )
    # accelerate reads one batch ahead: the second batch spoils the first step's weights before the second step.
    with pytest.raises(FloatingPointError, match=r"of step 1 is not finite \(its 8 samples begin with \[0, 1, 2"):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob("checkpoint*"))


def test_captions_of_several_languages():
    value = {"en": ["a cat", ""], "de": "eine Katze", "fr": None}
    assert as_captions(value) == ["a cat", "eine Katze"]
    assert as_captions([value, "another"]) == ["a cat", "eine Katze", "another"]
    with pytest.raises(UnusableRowError, match="must be a string"):
        as_captions(3)
    with pytest.raises(UnusableRowError, match="half of a pair of surrogates"):
        as_captions(["a cat", "half \ud83d"])


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), max_size=30), st.sampled_from([0.0, 0.01, 0.5]))
def test_the_counter_stops_at_the_limit_and_not_before(steps, limit):
    counter, read, bad = SkipCounter(limit, grace=100), 0, 0
    for count, skipped in steps:
        read, bad = read + count, bad + skipped
        names = [("x", "y")] * skipped
        if skipped and bad > limit * max(read, 100):
            with pytest.raises(TooManyBadSamples):
                counter.add(count, names)
            return
        counter.add(count, names)
    assert (counter.read, counter.total_skipped) == (read, bad)
