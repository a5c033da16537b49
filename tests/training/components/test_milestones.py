"""Checkpoints at shares of training outlive those that take the place of one another, and a run goes on from them."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    SiglipExtTrainer,
    SiglipExtTrainingArguments,
)
from modeling_siglip_ext.training.components.milestones import Milestones


def test_a_checkpoint_is_asked_for_at_the_first_step_that_is_as_far():
    asked = []
    milestones, state = Milestones([0.5, 0.95]), TrainerState(max_steps=10)
    for step in range(1, 11):
        state.global_step, control = step, TrainerControl()
        milestones.on_step_end(SiglipExtTrainingArguments(report_to="none"), state, control)
        asked += [step] if control.should_save else []
    assert asked == [5, 10]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 90])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="keep_at has shares of training"):
        SiglipExtTrainingArguments(report_to="none", keep_at=[0.5, share])


def test_a_kept_checkpoint_outlives_the_limit_and_a_run_goes_on_from_it(
    tmp_path, our_model, arguments, rows, processor
):
    def run(folder: str) -> SiglipExtTrainer:
        args = arguments(
            output_dir=str(tmp_path / folder), max_steps=6, save_strategy="steps", save_steps=1, save_total_limit=1,
            keep_at=[0.5],
        )  # fmt: skip
        model = copy.deepcopy(our_model)
        data = ImageTextDataset(rows, image_processor=processor.image_processor)
        return SiglipExtTrainer(
            model=model, args=args, train_dataset=data, data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )  # fmt: skip

    run("whole").train()
    last, kept = tmp_path / "whole" / "checkpoint-6", tmp_path / "whole" / "kept"
    assert [path.name for path in tmp_path.glob("whole/checkpoint-*")] == [last.name]
    assert [path.name for path in kept.iterdir()] == ["checkpoint-3"]
    assert {path.name for path in (kept / "checkpoint-3").iterdir()} == {path.name for path in last.iterdir()}
    again = run("again")
    again.train(resume_from_checkpoint=str(kept / "checkpoint-3"))
    assert again.state.global_step == 6
    one, other = (load_file(tmp_path / folder / last.name / "model.safetensors") for folder in ("whole", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
