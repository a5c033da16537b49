"""Training on the device: gradient cache, the Trainer, resuming, and steps that never wait for the device."""

import contextlib
import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from modeling_siglip_ext import sigmoid_loss
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    SiglipExtTrainer,
    SiglipExtTrainingArguments,
)
from modeling_siglip_ext.training.components.grad_cache import cached_backward, split_batch


@pytest.fixture
def train(rows, processor, tmp_path, device):
    """Trains a model with some settings."""

    def run(model, uint8: bool = False, resume: str | None = None, **settings) -> SiglipExtTrainer:
        usual = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": device.type == "cpu",
        }
        dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
        trainer = SiglipExtTrainer(
            model=model,
            args=SiglipExtTrainingArguments(**usual | settings),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=ImageTextCollator(processor, uint8=uint8),
            processing_class=processor,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def losses(trainer: SiglipExtTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def inputs_of(rows, processor, device, count: int) -> dict[str, torch.Tensor]:
    batch = processor(
        text=list(rows["caption"])[:count],
        images=list(rows["image"])[:count],
        padding="max_length",
        return_tensors="pt",
    )
    return {name: batch[name].to(device) for name in ("pixel_values", "input_ids")}


def test_the_gradient_cache_gives_the_gradients_of_the_whole_batch(model, rows, processor, device):
    model = model.to(device, torch.float64).train()
    inputs = inputs_of(rows, processor, device, 12)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    model(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    cached_backward(model, model, split_batch(inputs, 5), sigmoid_loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_the_evaluated_loss_is_that_of_a_cpu(model, train, rows, processor, device):
    """In float64, of the model as it was trained on the device."""
    trainer = train(model)
    assert next(model.parameters()).device.type == device.type
    found = trainer.evaluate()["eval_loss"]
    inputs = inputs_of(rows, processor, torch.device("cpu"), len(rows))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        outputs = copy.deepcopy(model).to("cpu", torch.float64).eval()(**inputs, return_loss=True)
    assert found == pytest.approx(outputs.loss.item(), rel=2e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mini_batch_size": 4, "uint8": True},
        {"optim": "scaling_vit_adafactor"},
        {"optim": "adamw_bf16"},
        {"dataloader_num_workers": 2, "uint8": True},
        {"ema_decay": 0.9},
        {"gradient_checkpointing": True},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_bfloat16_fine_tuning_learns(settings, model, train):
    trainer = train(model, bf16=True, max_steps=50, learning_rate=3e-3, **settings)
    found = losses(trainer)
    assert all(map(math.isfinite, found))
    assert sum(found[-4:]) < 0.8 * sum(found[:4])
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_compiled(model, train, device, tmp_path):
    if device.type == "cpu":
        pytest.skip("compiling for a CPU takes long")
    plain = losses(train(copy.deepcopy(model)))
    compiled = train(model, torch_compile=True, output_dir=str(tmp_path / "compiled"))
    assert losses(compiled) == pytest.approx(plain, rel=1e-2)


def test_lora(model, train):
    adapter = LoraConfig(target_modules="all-linear", modules_to_save=["logit_scale", "logit_bias"])
    trainer = train(get_peft_model(model, adapter), bf16=True, max_steps=30, learning_rate=1e-2)
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.fixture
def deterministic(monkeypatch):
    """Kernels that give the same on every run, where there are any."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 4, "optim": "scaling_vit_adafactor"}], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(settings, model, train, deterministic):
    again = copy.deepcopy(model)
    settings = {"bf16": True, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, **settings}
    whole = train(model, **settings)
    train(again, resume=f"{whole.args.output_dir}/checkpoint-3", **settings)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@contextlib.contextmanager
def nothing_waits(device: torch.device):
    """An error wherever the host would wait for the GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pairs", [8, 1100])
def test_a_step_never_waits_for_the_device(pairs, model, rows, processor, device):
    """With the eager loss of small batches, and in tiles."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs = inputs_of(rows, processor, device, 8)
    inputs = {name: value.repeat(math.ceil(pairs / 8), *[1] * (value.ndim - 1)) for name, value in inputs.items()}

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    first = step()
    with nothing_waits(device):
        for _ in range(3):
            last = step()
    assert last.item() < first.item()


def test_a_cached_step_never_waits_for_the_device(model, rows, processor, device):
    model = model.to(device).train()
    chunks = split_batch(inputs_of(rows, processor, device, 12), 4)
    cached_backward(model, model, chunks, sigmoid_loss)
    with nothing_waits(device):
        cached_backward(model, model, chunks, sigmoid_loss)
