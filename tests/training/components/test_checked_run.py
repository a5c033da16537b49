"""What the Trainer makes sure of before its first step, in Python as on the command line."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.samples import TooManyBadSamples
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


BROKEN = {"bytes": b"not an image", "path": "broken.jpg"}


@pytest.fixture
def make(our_model, arguments, rows, processor):
    def build(
        evaluation=None, compute_metrics=None, train=None, equal_captions_match=False, **changes
    ) -> SiglipExtTrainer:
        return SiglipExtTrainer(
            model=our_model,
            args=arguments(**changes),
            train_dataset=ImageTextDataset(rows) if train is None else train,
            eval_dataset=evaluation,
            data_collator=ImageTextCollator(processor, equal_captions_match=equal_captions_match),
            processing_class=processor,
            compute_metrics=compute_metrics,
        )

    return build


@pytest.fixture
def broken(rows) -> Dataset:
    """The rows with an image that is broken."""
    images = list(rows.cast_column("image", type(rows.features["image"])(decode=False))["image"])
    images[5] = BROKEN
    return Dataset.from_dict({"image": images, "caption": rows["caption"]})


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}


@pytest.mark.parametrize("cached", [True, False])
def test_an_evaluation_image_that_is_broken_is_left_out(make, broken, processor, cached, caplog):
    image_processor = processor.image_processor if cached else None
    evaluation = ImageTextDataset(broken, image_processor=image_processor, max_bad_fraction=0.1)
    trainer = make(evaluation, **EACH_STEP)
    trainer.train()
    assert evaluation.rows == [row for row in range(16) if row != 5]
    assert [name for name, _ in evaluation.left_out] == ["example 5"]
    assert "broken.jpg" in caplog.text
    assert [entry["eval_loss_pairs"] for entry in trainer.state.log_history if "eval_loss" in entry] == [15, 15]


def test_too_many_are_an_error_before_the_first_step(make, broken):
    trainer = make(ImageTextDataset(broken), **EACH_STEP)
    with pytest.raises(TooManyBadSamples, match=r"1 of 16 samples are bad"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_rows_of_other_datasets_are_read_before_the_first_step(make, broken):
    trainer = make({"mine": broken}, **EACH_STEP)
    with pytest.raises(ValueError, match=r"evaluation example 5 cannot be used: .*broken\.jpg"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_broken_image_in_a_subset_is_an_error_and_not_replaced(make, broken):
    part = torch.utils.data.Subset(ImageTextDataset(broken, max_bad_fraction=0.5), range(3, 9))
    with pytest.raises(ValueError, match=r"evaluation example 2 cannot be used: .*broken\.jpg"):
        make(part, **EACH_STEP).train()


def test_evaluation_data_without_captions_or_examples(make, rows):
    nameless = Dataset.from_dict({"image": rows["image"][:2], "caption": ["a", None]})
    with pytest.raises(ValueError, match="evaluation example 1 cannot be used: no caption"):
        make(nameless, **EACH_STEP).train()
    with pytest.raises(ValueError, match="the evaluation data has no example that can be used"):
        make(ImageTextDataset(rows.select([])), **EACH_STEP).train()


def test_reading_the_evaluation_data_leaves_the_random_state(make, rows):
    weights = []
    for evaluation in (None, rows):
        torch.manual_seed(0)
        trainer = make(evaluation, max_steps=2, **({"eval_strategy": "epoch"} if evaluation else {}))
        initial = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        weights.append(trainer.model.logit_scale.item())
        trainer.model.load_state_dict(initial)
    assert weights[0] == weights[1]


def test_an_image_that_breaks_later_leaves_a_checkpoint(make, broken, monkeypatch):
    """The evaluation of the third step fails; what was trained so far is on disk, and can be resumed."""
    evaluation = ImageTextDataset(broken, max_bad_fraction=0.1)
    trainer = make(evaluation, **EACH_STEP | {"max_steps": 4})
    evaluate, calls = trainer.evaluate, []

    def failing(*args, **kwargs):
        calls.append(trainer.state.global_step)
        if calls[-1] == 3:
            evaluation.images = ImageTextDataset(broken.select([5] * 15), max_bad_fraction=1.0).images
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", failing)
    with pytest.raises(ValueError, match=r"example 0: .*broken\.jpg"):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]
    resumed = make(ImageTextDataset(broken, max_bad_fraction=0.1), **EACH_STEP | {"max_steps": 4})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def gives(*names):
    return lambda prediction: dict.fromkeys(names, 0.5)


@pytest.mark.parametrize(
    ("wanted", "function", "good"),
    [
        ("accuracy", None, False),
        ("accuracy", gives("precision"), False),
        ("loss", None, True),
        ("eval_loss", gives("precision"), True),
        ("precision", gives("precision"), True),
        ("eval_precision", gives("precision"), True),
    ],
)
def test_the_metric_of_the_best_model_is_known_before_the_first_step(make, rows, wanted, function, good):
    settings = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1, **EACH_STEP}
    trainer = make(ImageTextDataset(rows), function, metric_for_best_model=wanted, **settings)
    if good:
        trainer.train()
        assert trainer.state.best_metric is not None
        return
    with pytest.raises(ValueError, match="metric_for_best_model='accuracy' is none that an evaluation gives: loss"):
        trainer.train()
    assert trainer.state.global_step == 0


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2}


def test_a_fresh_run_in_the_folder_of_another(make):
    make(**CHECKPOINTS).train()
    with pytest.raises(FileExistsError, match="holds checkpoint-4 of an earlier run"):
        make(**CHECKPOINTS).train()
    resumed = make(**CHECKPOINTS, max_steps=6, resume_from_checkpoint="true")
    resumed.train()
    assert resumed.state.global_step == 6


def test_a_checkpoint_of_another_run(make, rows):
    make(**CHECKPOINTS).train()
    for changes, reason in (
        ({"learning_rate": 1.0}, r"learning_rate is 0\.002 there and 1\.0 here"),
        ({"per_device_train_batch_size": 4}, "contrastive batch is 8 there and 4 here"),
        ({"optim": "sgd"}, "optim is 'adamw_torch_fused' there and 'sgd' here"),
        ({"seed": 1}, "seed is 42 there and 1 here"),
        ({"lock_towers": ["vision"]}, "lock_towers"),
        ({"max_steps": 3}, "at step 4, beyond max_steps=3"),
        ({"train": ImageTextDataset(rows.select(range(12)))}, "rows is 16 there and 12 here"),
        ({"train": ImageTextDataset(rows, caption_column="captions")}, "its training captions are others"),
        ({"train": ImageTextDataset(rows, shuffle_captions=True)}, "its training captions are others"),
        ({"train": ImageTextDataset(rows, pair_column="caption")}, "pair_column is None there and 'caption' here"),
        ({"equal_captions_match": True}, "equal_captions_match is None there and True here"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-4 is .*{reason}"):
            make(**CHECKPOINTS | changes).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"]
)
def test_a_checkpoint_that_is_not_whole(make, name):
    make(max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make()
    path = Path(trainer.args.output_dir) / "checkpoint-1" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{name} is damaged .*an earlier one in resume_from_checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    if name == "scheduler.pt":
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"scheduler\.pt is missing"):
            trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_model(make, our_model):
    make(**CHECKPOINTS).train()
    our_model.text_model.head = torch.nn.Linear(32, 16)
    with pytest.raises(ValueError, match="checkpoint-4 is of another run: parameters is"):
        make(**CHECKPOINTS).train(resume_from_checkpoint=True)


def test_a_finished_run_is_not_trained_any_further(make):
    """Of 2 steps of an epoch of 2; Trainer would add one where the epoch is not over."""
    make(**CHECKPOINTS, max_steps=3, logging_steps=3).train()
    trainer = make(**CHECKPOINTS, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
