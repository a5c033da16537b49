"""Runs on scenes: the same twice and on disk, the parts that a setting changes, and that wrong pairs are left out."""

from dataclasses import replace

import pytest
import torch

from modeling_siglip_ext.training.components.initial_values import InitialValues
from modeling_siglip_ext.training.studies.runs import Runs
from modeling_siglip_ext.training.studies.scenes import run
from modeling_siglip_ext.training.studies.scenes.choice import Choice
from modeling_siglip_ext.training.studies.scenes.settings import SIGLIP, SceneRun
from modeling_siglip_ext.training.studies.scenes.training import build_model, on_device, train


QUICK = SceneRun(steps=4, batch_size=8)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("run.SCENES", "run.PROBE_SCENES"):
        monkeypatch.setattr(f"modeling_siglip_ext.training.studies.scenes.{name}", 50)
    monkeypatch.setattr("modeling_siglip_ext.training.studies.scenes.data.SHARD", 64)


def towers(settings: SceneRun) -> dict[str, torch.Tensor]:
    torch.manual_seed(settings.seed)
    model = build_model(settings)
    for _ in train(model, settings, torch.device("cpu")):
        pass
    return model.model.state_dict()


def test_a_run_is_kept_by_its_settings(tmp_path):
    settings = replace(QUICK, initial=InitialValues(position_std=0.5), task_weights=(1.0, 0.0, 0.0), objects=(1, 1))
    Runs(tmp_path / "runs.jsonl", SceneRun).add(settings, {"loss": 1.0})
    assert Runs(tmp_path / "runs.jsonl", SceneRun).figures == {settings: {"loss": 1.0}}


def test_towers_that_differ_in_objectives_begin_alike():
    torch.manual_seed(0)
    alone = build_model(QUICK).model.state_dict()
    torch.manual_seed(0)
    all_of_it = build_model(replace(QUICK, captioning=1.0, distillation=1.0, masking=1.0)).model.state_dict()
    assert all(torch.equal(all_of_it[name], value) for name, value in alone.items())


def test_what_an_objective_does_before_it_joins():
    late = replace(QUICK, captioning=1.0, distillation=1.0, masking=1.0, starts_at=0.5, views=1)
    losses = []
    torch.manual_seed(0)
    for _, own in train(build_model(late), late, torch.device("cpu")):
        losses.append(set(own))
    first = {"contrastive", "captioning"}
    assert losses == [first] * 2 + [first | {"distillation", "masking"}] * 2


def test_one_emoji_a_scene_at_first():
    settings = replace(QUICK, one_object=0.25, objects=(2, 3))
    assert [(data.objects, steps) for data, steps in settings.phases] == [((1, 1), 1), ((2, 3), 3)]


def test_a_reference_is_trained_once_for_all_scores_and_shares():
    one = replace(QUICK, score="learnability", reference_steps=2, quarters=True)
    other = replace(one, score="easy_reference", shuffled=0.4)
    first, second = (Choice(settings, torch.device("cpu")).reference for settings in (one, other))
    assert first is second
    assert Choice(replace(one, seed=1), torch.device("cpu")).reference is not first


@pytest.mark.slow
def test_figures_of_a_run():
    settings = replace(QUICK, captioning=1.0, probe_steps=2)
    figures, again = run.train_and_evaluate(settings), run.train_and_evaluate(settings)
    for own in (figures, again):
        own.pop("seconds"), own.pop("step_seconds")
    assert figures == again
    for part in ("validation", "held_out"):
        for name in (
            "recall@1",
            "miou",
            "miou_pooled",
            "position_r2",
            "names",
            "one_referring",
            "more_referring_wrong",
        ):
            assert f"{part}_{name}" in figures
        assert f"{part}_probe_more_referring" in figures
    assert figures["train_captioning"] > 0


def test_wrong_captions_and_their_choice():
    device = torch.device("cpu")
    noisy = Choice(replace(QUICK, batch_size=64, shuffled=0.5), device)
    rows = {
        "pixels": torch.zeros(64, 3, 72, 72, dtype=torch.uint8),
        "input_ids": torch.arange(64)[:, None].expand(64, 12),
    }
    batch = noisy(build_model(QUICK), on_device(rows, device), 0)
    moved = (batch["input_ids"][:, 0] != torch.arange(64)).sum().item()
    assert moved == 32
    assert sorted(batch["input_ids"][:, 0].tolist()) == list(range(64))
    assert noisy.clean_share() == 0.5
    chosen = Choice(replace(QUICK, batch_size=32, shuffled=0.5, score="easy_reference", reference_steps=1), device)
    assert len(chosen(build_model(QUICK), on_device(rows, device), 0)["input_ids"]) == 32


@pytest.mark.parametrize("score", [None, "learnability"])
def test_what_is_chosen_is_measured_after_each_quarter(score):
    figures = run.train_and_evaluate(replace(QUICK, shuffled=0.5, score=score, reference_steps=2, quarters=True))
    for quarter in range(1, 5):
        assert 0 <= figures[f"clean_{quarter}"] <= 1
        assert f"held_out_recall@1_{quarter}" in figures
    assert (figures["clean_1"] == 0.5) == (score is None)


def test_a_choice_draws_twice_as_many():
    assert SceneRun(score="learnability", steps=10).drawn == 128
    assert SceneRun(initial=SIGLIP).initial == InitialValues()
