"""Checkpoints: whole or not there, and a killed run ends bit for bit like one that nobody killed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components.checkpoint import PARTIAL
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.processes import run_worker


WORKER = Path(__file__).with_name("kill_worker.py")
# Times, and the path of the run.
NOT_COMPARED = {"examples_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def same_tensors(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_tensors, one, other))
    return one == other


def history(checkpoint: Path) -> list[dict]:
    entries = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if name not in NOT_COMPARED} for entry in entries]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "kinds"),
    [
        (2, ["map", "stream"]),
        pytest.param(2, ["naflex"], marks=pytest.mark.slow),
        pytest.param(20, ["map", "stream", "naflex"], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_like_one_that_nobody_killed(tmp_path, kills, kinds):
    printed = run_worker(WORKER, tmp_path, kills, 0, *kinds, timeout=900)
    assert "kill 1: came too late" not in printed
    for kind in kinds:
        whole, killed = (tmp_path / kind / run / "checkpoint-24" for run in ("whole", "killed"))
        for file in ("model.safetensors", "ema.safetensors"):
            assert same_tensors(load_file(whole / file), load_file(killed / file)), file
        for file in ("optimizer.pt", "scheduler.pt"):
            assert same_tensors(*(torch.load(run / file, weights_only=True) for run in (whole, killed))), file
        assert history(whole) == history(killed)
        assert len([entry for entry in history(killed) if "batch" in entry]) == 12
        assert (whole / "progress_0.json").read_text() == (killed / "progress_0.json").read_text()
        assert not list(killed.parent.glob(f"{PARTIAL}*"))


@pytest.fixture
def make(our_model, arguments, rows, processor):
    def build(**changes) -> SiglipExtTrainer:
        return SiglipExtTrainer(
            model=our_model,
            args=arguments(save_strategy="steps", save_steps=1, **changes),
            train_dataset=ImageTextDataset(rows),
            eval_dataset=ImageTextDataset(rows),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )

    return build


def checkpoints(trainer: SiglipExtTrainer) -> set[str]:
    return {path.name for path in Path(trainer.args.output_dir).iterdir()}


def test_a_checkpoint_shows_only_when_whole(make, monkeypatch):
    """A run that dies at the last file of a checkpoint leaves none of it under its final name."""
    trainer = make()

    def save_extra(folder):
        assert (folder / "optimizer.pt").exists()
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_extra", save_extra)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(trainer) == {"checkpoint-1", PARTIAL}


def test_limit_and_best_model(make, our_model):
    """Trainer's own rules hold for the renamed folders: `save_total_limit`, the best one kept and loaded."""
    trainer = make(
        max_steps=5,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_answer",
        greater_is_better=True,
    )
    scores = iter([0.0, 0.1, 0.9, 0.2, 0.3, 0.4])  # the first is asked for before training, for its name
    trainer.compute_metrics = lambda prediction: {"answer": next(scores)}
    trainer.train()
    assert checkpoints(trainer) == {"checkpoint-2", "checkpoint-5"}
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-5" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]) == Path(trainer.args.output_dir) / "checkpoint-2"
    best = load_file(Path(trainer.args.output_dir) / "checkpoint-2" / "model.safetensors")
    for name, parameter in our_model.named_parameters():
        assert torch.equal(parameter, best[name]), name


def test_a_checkpoint_without_its_progress(make):
    trainer = make(max_steps=1)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    (folder / "progress_0.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"progress_0\.json is missing"):
        make(max_steps=2).train(resume_from_checkpoint=str(folder))
