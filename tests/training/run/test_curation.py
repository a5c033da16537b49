"""Curation that a recipe asks for: with a reference model from a folder, beside other objectives, and refused."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtImageProcessor, SiglipExtModel, SiglipExtProcessor
from modeling_siglip_ext.training.run.prepare import prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.smoke import shrunk, small_start
from modeling_siglip_ext.training.run.train import train
from support.models import TINY


LENGTH = 12


@pytest.fixture
def save(processor, tmp_path):
    """Saves a tiny model with its processor; gives the folder."""

    def write(name: str, size: int = 16, length: int = LENGTH, tokenizer=processor.tokenizer, **changes) -> str:
        torch.manual_seed(len(name))
        tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        text = {**TINY, **tokens, "max_position_embeddings": length}
        config = SiglipExtConfig(
            vision_config={**TINY, "image_size": size, "patch_size": 4}, text_config=text, **changes
        )
        SiglipExtModel(config).save_pretrained(str(tmp_path / name))
        images = SiglipExtImageProcessor(size={"height": size, "width": size})
        SiglipExtProcessor(images, tokenizer).save_pretrained(str(tmp_path / name))
        return str(tmp_path / name)

    return write


@pytest.fixture
def make(tmp_path, rows, save):
    """Parses a recipe over a Parquet file of 16 captioned images, with settings of the choice and other fields."""
    rows.to_parquet(tmp_path / "rows.parquet")
    start = save("start")

    def parse(curation, **changes):
        values = {
            "model_name_or_path": start,
            "dataset": str(tmp_path / "rows.parquet"),
            "output_dir": str(tmp_path / "out"),
            "eval_fraction": 0.0,
            "eval_strategy": "no",
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "curation": curation,
            **changes,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return parse_recipe(str(tmp_path / "recipe.yaml"))

    return parse


def test_a_run_with_a_reference(make, save, tmp_path):
    reference = save("reference")
    run = prepare(make({"ratio": 0.75, "chunks": 2, "reference_name_or_path": reference}))
    train(run)
    entries = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert [(entry["examples_seen"], entry["examples_drawn"]) for entry in entries] == [(4, 16), (8, 32)]
    saved = load_file(tmp_path / "out/model.safetensors")
    assert set(saved) == set(SiglipModel(AutoModel.from_pretrained(tmp_path / "out").config).state_dict())
    card = (tmp_path / "out/README.md").read_text()
    assert "reference_name_or_path: reference" in card
    assert str(tmp_path) not in card


def test_beside_another_objective(make, save):
    settings = {"reference_name_or_path": save("reference")}
    run = prepare(make(settings, objectives={"captioning": 1.0}, mini_batch_size=2))
    train(run)
    assert "loss_captioning" in run.trainer.state.log_history[0]


def test_a_smoke_run_has_a_reference_of_its_own(tmp_path):
    recipe = parse_recipe("siglip2_b16_curated", ["--output_dir", str(tmp_path)], change=shrunk)
    assert recipe.objectives.curation["ratio"] == 0.5
    small_start(recipe)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("start", "reference")]
    assert recipe.objectives.curation["reference_name_or_path"] == str(tmp_path / "reference")
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "curation.score=learnability needs curation.reference_name_or_path"),
        ({"score": "hard_learner", "reference_name_or_path": "start"}, "leave out curation.reference_name_or_path"),
        ({"rato": 0.5}, "curation: unknown name 'rato'; did you mean 'ratio'"),
        ({"ratio": 0.8, "score": "hard_learner"}, "16 samples, fewer than one super-batch of 20"),
        ({"ratio": 0.7, "score": "hard_learner"}, "curation.ratio=0.7 of what number leaves 4"),
        ({"ratio": 1, "score": "hard_learner"}, "curation.ratio must be above 0"),
    ],
    ids=str,
)
def test_settings_that_are_refused(make, tmp_path, settings, reason):
    if "reference_name_or_path" in settings:
        settings = {**settings, "reference_name_or_path": str(tmp_path / "start")}
    with pytest.raises(ValueError, match=reason):
        prepare(make(settings))


def test_references_that_are_refused(make, save, processor, tmp_path):
    other = type(processor.tokenizer).train_new_from_iterator(processor.tokenizer, ["nothing else", "at all"], 270)
    wrong = {
        "takes other images than the model: size": save("larger", size=32),
        "takes texts of 8 tokens, and the model of 12": save("shorter", length=8),
        "another vocabulary": save("other", tokenizer=other),
        "not trained with the sigmoid loss": save("clip", loss_type="softmax", logit_bias_init=None),
    }
    for reason, folder in wrong.items():
        with pytest.raises(ValueError, match=reason):
            prepare(make({"reference_name_or_path": folder}))
    with pytest.raises(OSError, match=r"curation.reference_name_or_path=.*did you mean .*larger"):
        prepare(make({"reference_name_or_path": str(tmp_path / "large")}))
