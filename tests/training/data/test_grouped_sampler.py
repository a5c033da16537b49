"""Orders that keep variants together, alone and inside the Trainer."""

from itertools import chain, groupby, pairwise

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.arguments import SiglipExtTrainingArguments
from modeling_siglip_ext.training.data.emoji.loader import load_emoji
from modeling_siglip_ext.training.data.grouped_sampler import GroupedSampler
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.workers import recording


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 3))
def test_every_row_once_and_variants_together(groups, size, epoch):
    sampler = GroupedSampler(groups, size)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(groups)))
    assert len(sampler) == len(groups)
    assert order == list(sampler), "an epoch has one order"
    for name in ("a", "b", "c"):
        # pieces may touch, but no more runs than pieces
        runs = sum(is_it for is_it, _ in groupby(groups[row] == name for row in order))
        assert runs <= -(-groups.count(name) // size)


def test_orders_differ_between_epochs_and_seeds():
    groups = [row // 4 for row in range(400)]
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sampler = GroupedSampler(groups, 3, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 4
    # of a group of four, three stay together and the fourth is another one each time
    alone = [{row for row in order if _neighbours(order, groups, row) == 0} for order in orders]
    assert len(set(map(frozenset, alone))) == 4


def _neighbours(order, groups, row):
    place = order.index(row)
    return sum(groups[other] == groups[row] for other in order[max(0, place - 1) : place + 2]) - 1


def test_groups_begin_at_their_epoch():
    groups = [row // 4 for row in range(400)]
    sampler = GroupedSampler(groups, 4, first_epoch=2)
    together = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        together.append(sum(groups[one] == groups[other] for one, other in pairwise(order)))
    assert max(together[:2]) < 20 < 300 <= min(together[2:])


def test_groups_of_any_type():
    nan = float("nan")
    order = list(GroupedSampler([["a"], nan, {"b": 1}, nan, ["a"], {"b": 1}, 0, None, nan], size=2, seed=3))
    assert abs(order.index(0) - order.index(4)) == 1
    assert abs(order.index(2) - order.index(5)) == 1
    assert len(set(GroupedSampler([nan, nan, 0, None, None], size=2).groups)) == 5


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        GroupedSampler(["a"], 0)
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        SiglipExtTrainingArguments(group_size=0)
    with pytest.raises(ValueError, match="group_from_epoch must not be negative, got -1"):
        SiglipExtTrainingArguments(group_from_epoch=-1)


def test_the_trainer_keeps_variants_together(our_model, arguments):
    rows = Dataset.from_dict(
        {
            "image": [Image.new("RGB", (8, 8))] * 12,
            "caption": [f"number {row}" for row in range(12)],
            "thing": [row % 4 for row in range(12)],
        }
    )
    dataset = ImageTextDataset(rows, group_column="thing")
    trainer = SiglipExtTrainer(
        model=our_model,
        args=arguments(per_device_train_batch_size=3, group_size=3),
        train_dataset=dataset,
        data_collator=lambda examples: {"captions": [example["caption"] for example in examples]},
    )
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = [[int(caption.split()[1]) for caption in batch["captions"]] for batch in loader]
        assert all(len({row % 4 for row in batch}) == 1 for batch in batches)
        epochs.append(batches)
    assert epochs[0] != epochs[1]


def test_a_resumed_run_sees_the_batches_of_a_whole_one(rows, processor, our_model, arguments):
    rows = rows.add_column("shape", [caption.split()[-1] for caption in rows["caption"]])
    dataset = ImageTextDataset(rows, group_column="shape")
    values = {"per_device_train_batch_size": 4, "max_steps": 12, "save_strategy": "steps", "save_steps": 6}
    args = arguments(**values, group_size=2, group_from_epoch=1)

    def run(checkpoint=None) -> list:
        trainer = recording(lambda _, inputs: inputs["input_ids"].tolist())(
            model=our_model, args=args, train_dataset=dataset, data_collator=ImageTextCollator(processor)
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.batches

    whole = run()
    assert len(whole) == 12
    # 4 steps an epoch: the checkpoint is in the middle of the second
    assert run(f"{args.output_dir}/checkpoint-6") == whole[6:]
    epochs = [sorted(chain(*whole[start : start + 4])) for start in (0, 4, 8)]
    assert epochs[0] == epochs[1] == epochs[2]


def test_the_tones_of_an_emoji_share_a_base():
    emoji = load_emoji("train")
    base = dict(zip(emoji["en"], emoji["base"]))
    assert base["man: medium-light skin tone, beard"] == base["man: beard"] == "man: beard"
    assert base["grinning face"] == "grinning face"
    # a Japanese-only reader gets the same groups
    assert load_emoji("train", languages="ja")["base"][:] == emoji["base"][:]


def test_a_missing_group_column_lists_those_present():
    rows = Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], "caption": ["one"]})
    with pytest.raises(ValueError, match=r"group_column='thing'.*'image', 'caption'"):
        ImageTextDataset(rows, group_column="thing")
