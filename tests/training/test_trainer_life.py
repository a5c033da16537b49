"""What Trainer does besides training: callbacks, tensorboard, compiling, PEFT, bfloat16, launchers, the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, EarlyStoppingCallback, Trainer, TrainerCallback

from modeling_siglip_ext.training.components.hub import HubPushes
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.processes import TESTS


def losses(trainer: SiglipExtTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_tensorboard(our_model, make, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = make(our_model, report_to="tensorboard")
    trainer.train()
    (events,) = (tmp_path / "logs").rglob("events*")
    written = EventAccumulator(str(events)).Reload()
    scalars = {tag: [event.value for event in written.Scalars(tag)] for tag in written.Tags()["scalars"]}
    assert scalars["train/loss"] == pytest.approx(losses(trainer), rel=1e-6)
    for name in ("temperature", "bias", "positive_logit", "negative_logit", "grad_norm_vision", "grad_norm_text"):
        assert len(scalars[f"train/{name}"]) == 4, name
    assert scalars["train/examples_seen"] == [8, 16, 24, 32]


@pytest.mark.parametrize(("batch", "accumulated"), [(5, 2), (5, 10), (4, 2), (3, 4)])
def test_examples_seen_are_those_that_were_trained_on(our_model, make, batch, accumulated, monkeypatch, caplog):
    """The last update of an epoch has the batches that are left: of 16 rows here 15 in three batches, say."""
    counts, step = [0], SiglipExtTrainer.training_step

    def counted(self, model, inputs, *rest):
        counts[0] += len(inputs["input_ids"])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(SiglipExtTrainer, "training_step", counted)
    settings = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": 3,
    }
    seen = []

    class Noting(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append(counts[0])

    trainer = make(our_model, callbacks=[Noting()], **settings, max_steps=-1, warmup_examples=10)
    trainer.train()
    assert [entry["examples_seen"] for entry in trainer.state.log_history if "loss" in entry] == seen
    short = 16 // batch % accumulated
    assert (f"its last update {short} of {accumulated}" in caplog.text) == bool(short)


def test_logged_figures(our_model, make, rows, processor):
    """Of one step, against the whole matrix of logits and the gradients of a plain backward."""
    trainer = make(our_model, max_steps=1, per_device_train_batch_size=16, learning_rate=0.0, max_grad_norm=1e-3)
    trainer.train()
    inputs = processor(images=list(rows["image"]), text=list(rows["caption"]), return_tensors="pt")
    outputs = our_model.eval()(**inputs, return_loss=False)
    logits = outputs.logits_per_image.detach().double()
    off = ~torch.eye(16, dtype=torch.bool)
    logged = trainer.state.log_history[0]
    assert logged["positive_logit"] == pytest.approx(logits.diagonal().mean().item(), abs=1e-4)
    assert logged["negative_logit"] == pytest.approx(logits[off].mean().item(), abs=1e-4)
    our_model.train()(**inputs).loss.backward()
    for tower in ("vision", "text"):
        grads = [p.grad for n, p in our_model.named_parameters() if n.startswith(tower) and p.grad is not None]
        norm = torch.cat([grad.flatten() for grad in grads]).norm().item()
        assert logged[f"grad_norm_{tower}"] == pytest.approx(norm, rel=1e-3), "before clipping"


def test_early_stopping(our_model, make):
    trainer = make(
        our_model,
        callbacks=[EarlyStoppingCallback(1)],
        max_steps=50,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("size", [None, 4])
def test_bfloat16(our_model, make, size):
    trainer = make(our_model, bf16=True, mini_batch_size=size, max_steps=12)
    trainer.train()
    assert all(parameter.dtype == torch.float32 for parameter in our_model.parameters())
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_lora(our_model, make, tmp_path):
    """With gradient cache; the adapter is resumed, and merged it gives a stock model."""
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["head"], init_lora_weights=False
    )
    our_model.save_pretrained(tmp_path / "base")
    our_model = type(our_model).from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(our_model, config)
    frozen = our_model.text_model.encoder.layers[0].mlp.fc1.weight.detach().clone()
    trainer = make(model, mini_batch_size=4, save_strategy="steps", save_steps=2, ema_decay=0.5)
    trainer.train()
    assert torch.equal(our_model.text_model.encoder.layers[0].mlp.fc1.weight, frozen)
    assert (Path(trainer.args.output_dir) / "checkpoint-2" / "adapter_model.safetensors").exists()
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert type(AutoModel.from_pretrained(tmp_path / "merged")).__name__ == "SiglipModel"


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 4])
def test_compiled(our_model, make, size):
    """The compiled model trains the same weights, cached or not."""
    initial = {name: value.clone() for name, value in our_model.state_dict().items()}
    plain = make(our_model, max_steps=3)
    plain.train()
    our_model.load_state_dict(initial)
    compiled = make(our_model, max_steps=3, torch_compile=True, mini_batch_size=size)
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.slow
def test_accelerate_launch(tmp_path):
    """On a CPU `accelerate launch` starts one process (several need MPI); torchrun is in test_distributed.py."""
    worker = Path(__file__).with_name("distributed_worker.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    finished = subprocess.run(
        [*launch, str(worker), "8", str(tmp_path), "ours-cache"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert (tmp_path / "ours-cache.safetensors").exists()


def test_the_hub_gets_whole_checkpoints(our_model, make, monkeypatch):
    """Uploads run in the background: they must start when the folder has its final name."""
    seen = []
    trainer = make(our_model, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.args.push_to_hub = True
    monkeypatch.setattr(
        HubPushes, "_push_from_checkpoint", lambda self, folder: seen.append((folder, sorted(os.listdir(folder))))
    )
    monkeypatch.setattr(Trainer, "_finish_current_push", lambda self: None)
    trainer.train()
    assert [Path(folder).name for folder, _ in seen] == ["checkpoint-1", "checkpoint-2"]
    assert all({"model.safetensors", "progress_0.json", "trainer_state.json"} <= set(files) for _, files in seen)
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
