"""The Trainer finds the collator for rows of images and captions, however they are wrapped, or says what it needs."""

import pytest
import torch
from datasets import Dataset
from torch.utils.data import ConcatDataset, Subset

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from modeling_siglip_ext.training.data.collating import collator_for, parts_of


def test_rows_of_every_kind(rows, processor):
    plain = Dataset.from_dict({"image": rows["image"][:4], "caption": [f"a {n}" for n in range(4)]})
    ours = ImageTextDataset(plain)
    wrapped = ConcatDataset([Subset(ours, [0, 1]), *torch.utils.data.random_split(ours, [2, 2])])
    for data in (plain, plain.to_iterable_dataset(), ours, wrapped, {"a": ours}, list(plain)):
        assert isinstance(collator_for(processor, data), ImageTextCollator), data
        assert isinstance(collator_for(processor, None, data), ImageTextCollator)
        with pytest.raises(ValueError, match="images and captions need a processor"):
            collator_for(None, data)
    assert collator_for(processor, [{"pixel_values": 0, "input_ids": 0}], None, []) is None
    with pytest.raises(TypeError, match="rows of the list are no mappings but a tuple"):
        collator_for(processor, [(rows["image"][0], "a")])
    assert list(parts_of(wrapped)) == [ours, ours, ours]


def test_what_a_subset_hides_is_refused(rows, processor):
    grouped = ImageTextDataset(rows, group_column="caption")
    with pytest.raises(ValueError, match="group_column does not reach the batches through a Subset"):
        collator_for(processor, Subset(grouped, [0, 1]))


def test_a_split_of_torch_trains_and_draws_captions_anew(rows, processor, our_model, arguments):
    texts = [[f"{n} {word}" for word in ("a", "b", "c", "d", "e")] for n in range(4)]
    data = ImageTextDataset(Dataset.from_dict({"image": rows["image"][:4], "caption": texts}))
    seen = []

    class Seen(ImageTextCollator):
        def __call__(self, examples):
            seen.append(sorted(example["caption"] for example in examples))
            return super().__call__(examples)

    SiglipExtTrainer(
        model=our_model,
        args=arguments(per_device_train_batch_size=4, num_train_epochs=4, max_steps=-1),
        train_dataset=Subset(data, range(4)),
        data_collator=Seen(processor),
        processing_class=processor,
    ).train()
    assert len({tuple(batch) for batch in seen}) > 1
