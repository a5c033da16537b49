"""The Trainer: safe defaults, the loss, weight decay, evaluation, resuming, saving."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, SiglipModel, TrainingArguments

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components import schedule
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


def make_trainer(model, args, rows, processor, **kwargs) -> SiglipExtTrainer:
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
    kwargs = {"train_dataset": dataset, "eval_dataset": dataset, "processing_class": processor, **kwargs}
    return SiglipExtTrainer(model=model, args=args, data_collator=ImageTextCollator(processor), **kwargs)


def paper_loss(image_embeds, text_embeds, scale, bias) -> float:
    """Algorithm 1 of the paper, in float64, one pair at a time."""
    images, texts = (F.normalize(torch.as_tensor(e).double(), dim=-1) for e in (image_embeds, text_embeds))
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = math.exp(scale) * float(image @ text) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(images)


@pytest.fixture(params=["our_model", "stock_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


def test_every_column_reaches_the_collator(our_model, arguments, rows, processor):
    """Trainer's own default would drop image and caption, which forward does not name."""
    seen = []

    def collate(examples: list[dict]) -> dict:
        seen.append(set(examples[0]))
        images, texts = ([example[name] for example in examples] for name in ("image", "caption"))
        return dict(processor(images=images, text=texts, return_tensors="pt"))

    trainer = SiglipExtTrainer(model=our_model, args=arguments(max_steps=1), train_dataset=rows, data_collator=collate)
    trainer.train()
    assert seen[0] == set(rows.column_names)


def test_training_batches_are_whole_and_evaluation_sees_all(our_model, arguments, rows, processor):
    trainer = make_trainer(our_model, arguments(per_device_train_batch_size=6), rows, processor)
    assert [len(batch["input_ids"]) for batch in trainer.get_train_dataloader()] == [6, 6]
    assert len(trainer.predict(trainer.eval_dataset).predictions[0]) == 16


def test_ddp_looks_for_no_unused_parameters(arguments):
    """All are used in every step; the search would cost a walk through the graph each time."""
    assert arguments().ddp_find_unused_parameters is False


def test_the_papers_optimiser_and_schedule_by_default(our_model, arguments, rows, processor):
    trainer = make_trainer(our_model, arguments(), rows, processor)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])


def test_a_loss_that_is_not_finite_is_shown(our_model, arguments, rows, processor):
    """Trainer's own default would show the mean of earlier losses in its place."""
    our_model.text_model.head.bias.data.fill_(torch.nan)
    trainer = make_trainer(our_model, arguments(), rows, processor)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert math.isnan(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_seconds": 0}, "max_seconds"),
        ({"eval_contrastive_batch_size": 0}, "eval_contrastive_batch_size"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics"),
    ],
)
def test_bad_arguments(arguments, changes, name):
    with pytest.raises(ValueError, match=name):
        arguments(**changes)


def test_the_model_does_not_scale_the_loss_itself(any_model, arguments, rows, processor):
    # Both forwards take **kwargs, from which Trainer would conclude the opposite.
    assert make_trainer(any_model, arguments(), rows, processor).model_accepts_loss_kwargs is False


def test_plain_training_arguments_are_refused(our_model, rows, processor, tmp_path):
    with pytest.raises(TypeError, match="SiglipExtTrainingArguments"):
        make_trainer(our_model, TrainingArguments(output_dir=str(tmp_path), use_cpu=True), rows, processor)


def test_data_parallel_is_refused(our_model, arguments, rows, processor):
    args = arguments()
    args._n_gpu = 2
    with pytest.raises(ValueError, match="DataParallel"):
        make_trainer(our_model, args, rows, processor)


def test_compute_loss_func_is_refused(our_model, arguments, rows, processor):
    with pytest.raises(ValueError, match="compute_loss_func"):
        make_trainer(our_model, arguments(), rows, processor, compute_loss_func=lambda *_: 0)


def test_a_model_without_loss_head_is_refused(our_model, arguments, rows, processor):
    with pytest.raises(TypeError, match="logit_scale"):
        make_trainer(our_model.text_model, arguments(), rows, processor)


def test_a_model_with_one_tower_is_called_one(our_model, arguments, rows, processor):
    with pytest.raises(TypeError, match="SiglipExtTextModel has no logit_scale and no logit_bias"):
        make_trainer(our_model.text_model, arguments(), rows, processor)
    our_model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^requires_grad=False on the model's parameters leaves nothing to train"):
        make_trainer(our_model, arguments(), rows, processor)


def test_a_collator_follows_from_the_processor(our_model, arguments, rows, processor):
    data = ImageTextDataset(rows, caption_column="caption")
    trainer = SiglipExtTrainer(model=our_model, args=arguments(), train_dataset=data, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 16, 16)
    assert torch.equal(batch["input_ids"][0] != 0, batch["input_ids"][0] != processor.tokenizer.pad_token_id)


def test_loss_is_that_of_the_paper(any_model, arguments, rows, processor):
    trainer = make_trainer(any_model, arguments(), rows, processor)
    any_model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(any_model, batch, return_outputs=True)
    expected = paper_loss(
        outputs.image_embeds.detach(),
        outputs.text_embeds.detach(),
        any_model.logit_scale.item(),
        any_model.logit_bias.item(),
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_accumulation_averages_contrastive_batches(our_model, arguments, rows, processor):
    """Two micro-batches give the mean of their two gradients, also with `labels` in the batch."""
    trainer = make_trainer(our_model, arguments(gradient_accumulation_steps=2), rows, processor)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 2
    batches = list(trainer.get_train_dataloader())
    total = 0.0
    for batch in batches:
        items = torch.tensor(1)  # what Trainer counts when a batch holds labels
        total += trainer.training_step(our_model, batch, num_items_in_batch=items).item()
    got = our_model.text_model.head.weight.grad.clone()
    our_model.zero_grad()
    losses = [trainer.compute_loss(our_model, batch) for batch in batches]
    (sum(losses) / 2).backward()
    assert total == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-6)
    torch.testing.assert_close(got, our_model.text_model.head.weight.grad)


def test_weight_decay_on_kernels_only(any_model, arguments, rows, processor):
    trainer = make_trainer(any_model, arguments(weight_decay=0.1), rows, processor)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in any_model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    assert decayed | free == set(names.values())
    kernels = ("proj.weight", "fc1.weight", "fc2.weight", "head.weight", "patch_embedding.weight", "in_proj_weight")
    assert decayed == {name for name in names.values() if name.endswith(kernels)}
    assert {"logit_scale", "logit_bias", "vision_model.head.probe"} <= free
    assert "text_model.embeddings.token_embedding.weight" in free
    assert "vision_model.embeddings.position_embedding.weight" in free


@pytest.mark.parametrize("batch_size", [3, 8, 16])
def test_eval_loss_is_blockwise(any_model, arguments, rows, processor, batch_size):
    args = arguments(per_device_eval_batch_size=batch_size, eval_contrastive_batch_size=6)
    trainer = make_trainer(any_model, args, rows, processor)
    metrics = trainer.evaluate()
    output = trainer.predict(trainer.eval_dataset)
    images, texts = output.predictions
    assert images.shape == texts.shape == (16, 32)
    blocks = [slice(0, 6), slice(6, 12)]  # the last four pairs are left out
    scale, bias = any_model.logit_scale.item(), any_model.logit_bias.item()
    expected = sum(paper_loss(images[block], texts[block], scale, bias) for block in blocks) / 2
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["eval_loss_pairs"] == 12


def test_compute_metrics_sees_every_sample_in_order(our_model, arguments, rows, processor):
    seen = {}

    def remember(prediction):
        seen["images"], seen["texts"] = prediction.predictions
        return {"answer": 42.0}

    args = arguments(per_device_eval_batch_size=5)
    metrics = make_trainer(our_model, args, rows, processor, compute_metrics=remember).evaluate()
    assert metrics["eval_answer"] == 42.0
    inputs = processor(images=list(rows["image"]), text=list(rows["caption"]), return_tensors="pt")
    with torch.no_grad():
        outputs = our_model.eval()(**inputs)
    np.testing.assert_allclose(seen["images"], outputs.image_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(seen["texts"], outputs.text_embeds.numpy(), atol=1e-6)


def test_train_save_load(any_model, arguments, rows, processor, tmp_path):
    args = arguments(max_steps=60, per_device_train_batch_size=16, learning_rate=3e-3)
    trainer = make_trainer(any_model, args, rows, processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 1
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["temperature"] == pytest.approx(10, rel=0.02)
    assert logged[0]["bias"] == pytest.approx(-10, rel=0.02)

    trainer.save_model(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert type(loaded) is SiglipModel
    stock_processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    inputs = stock_processor(
        images=list(rows["image"]),
        text=list(rows["caption"]),
        padding="max_length",
        max_length=12,
        return_tensors="pt",
    )
    with torch.no_grad():
        outputs = loaded(**inputs)
    images, texts = trainer.predict(trainer.eval_dataset).predictions
    np.testing.assert_allclose(outputs.image_embeds.numpy(), images, atol=1e-5)
    np.testing.assert_allclose(outputs.text_embeds.numpy(), texts, atol=1e-5)


def test_resume_equals_the_uninterrupted_run(our_model, arguments, rows, processor):
    initial = {name: value.clone() for name, value in our_model.state_dict().items()}
    whole = make_trainer(our_model, arguments(max_steps=6, save_strategy="steps", save_steps=3), rows, processor)
    whole.train()
    expected = {name: value.clone() for name, value in our_model.state_dict().items()}

    our_model.load_state_dict(initial)
    args = arguments(max_steps=6, save_strategy="steps", save_steps=3)
    resumed = make_trainer(our_model, args, rows, processor)
    resumed.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-3")
    assert resumed.state.global_step == 6
    for name, value in our_model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_checkpoint_that_lacks_a_parameter_is_an_error(our_model, arguments, rows, processor):
    args = arguments(max_steps=1, save_strategy="steps", save_steps=1)
    make_trainer(our_model, args, rows, processor).train()
    weights = f"{args.output_dir}/checkpoint-1/model.safetensors"
    state = load_file(weights)
    del state["vision_model.head.probe"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"vision_model\.head\.probe"):
        make_trainer(our_model, args, rows, processor).train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-1")


def test_max_seconds_ends_the_run_with_the_schedule_at_zero(our_model, arguments, rows, processor, monkeypatch):
    clock = itertools.count()  # a hundredth of a second from look to look, however busy the machine is
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    args = arguments(max_steps=100_000, max_seconds=2.0, warmup_steps=0.1)
    trainer = make_trainer(our_model, args, rows, processor)
    trainer.train()
    assert 2 <= trainer.state.global_step < 100_000
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(rates) <= 2e-3
    assert rates[-1] < 0.2 * max(rates)
    assert trainer.lr_scheduler.get_last_lr()[0] < 1e-5 * 2e-3 or trainer._budget.progress() == 1.0


def test_max_seconds_with_an_unsuitable_schedule(our_model, arguments, rows, processor):
    trainer = make_trainer(our_model, arguments(max_seconds=5, lr_scheduler_type="polynomial"), rows, processor)
    with pytest.raises(ValueError, match="lr_scheduler_type"):
        trainer.train()


def test_streaming_reads_on_every_process(our_model, arguments, rows, processor, caplog):
    """accelerate would otherwise read each batch on process 0 and send it around."""
    stream = rows.to_iterable_dataset()
    trainer = make_trainer(our_model, arguments(max_steps=3), rows, processor, train_dataset=stream)
    assert "ImageTextStream (of a streaming dataset" in caplog.text
    assert trainer.accelerator.dataloader_config.dispatch_batches is False
    trainer.train()
    assert trainer.state.global_step == 3


def test_another_caption_in_another_epoch(our_model, arguments, rows, processor):
    dataset = ImageTextDataset(rows, caption_column="captions", image_processor=processor.image_processor)
    seen = {}
    draw = dataset.caption

    def remember(index: int) -> str:
        caption = draw(index)
        seen.setdefault(index, []).append(caption)
        return caption

    dataset.caption = remember
    trainer = make_trainer(our_model, arguments(max_steps=12), rows, processor, train_dataset=dataset)
    trainer.train()  # two steps an epoch
    drawn = {index: captions[:6] for index, captions in seen.items()}
    assert all(len(captions) == 6 for captions in drawn.values())
    for epoch in range(6):
        dataset.set_epoch(epoch)
        assert all(captions[epoch] == draw(index) for index, captions in drawn.items())


def test_an_existing_card_is_kept(our_model, arguments, rows, processor, tmp_path):
    trainer = make_trainer(our_model, arguments(), rows, processor)
    card = tmp_path / "run" / "README.md"
    card.parent.mkdir(exist_ok=True)
    card.write_text("mine", encoding="utf-8")
    trainer.create_model_card()
    assert card.read_text(encoding="utf-8") == "mine"
    card.unlink()
    trainer.create_model_card()
    assert card.exists()
