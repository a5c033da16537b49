"""Curation that a recipe asks for: by a reference model or its embeddings, beside other objectives, and refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtImageProcessor, SiglipExtModel, SiglipExtProcessor
from modeling_siglip_ext.training.objectives import super_batch
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
    named = rows.add_column("shape", [caption.split()[-1] for caption in rows["caption"]])
    named.to_parquet(tmp_path / "rows.parquet")
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


@pytest.fixture
def embedded(make, save, tmp_path, status):
    """Embeds a reference's images and captions by the command; gives the folders of both."""

    def run(*words: str, name: str = "reference", columns: tuple[str, ...] = ("captions",)) -> tuple[str, str]:
        reference, folder = save(name), str(tmp_path / f"{name}-embeddings")
        data = ["--dataset", str(tmp_path / "rows.parquet"), "--caption_column", *columns, "--part_rows", "20"]
        kept = ["--output_dir", folder, "--device", "cpu"]
        assert status(["precompute", "--reference_name_or_path", reference, *data, *kept, *words]) == 0
        return reference, folder

    return run


@pytest.fixture
def chosen(monkeypatch):
    """The places of the examples that were chosen, at each step since it was cleared."""
    found = []

    def recorded(*arguments):
        found.append(select(*arguments).tolist())
        return torch.tensor(found[-1])

    select = super_batch.select
    monkeypatch.setattr(super_batch, "select", recorded)
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"mini_batch_size": 2, "gradient_accumulation_steps": 2},
        {"pair_column": "shape", "group_column": "shape", "group_size": 2, "dataloader_num_workers": 1},
        {"shuffle_captions": True, "cache_gib": 0.0, "eval_fraction": 0.2},
    ],
    ids=" ".join,
)
def test_embeddings_choose_as_their_reference_does(make, embedded, chosen, tmp_path, fields):
    """At every step of several epochs, each with other captions, and after a resume; the reference is gone by then."""
    reference, folder = embedded()
    common = {"caption_column": ["captions"], "max_steps": 5, "save_strategy": "steps", "save_steps": 3, **fields}

    def trained(out: str, **given: str) -> tuple[list, list, dict]:
        chosen.clear()
        run = prepare(make({"chunks": 2, **given}, **common, output_dir=str(tmp_path / out)))
        train(run)
        scores = [entry["curation_score"] for entry in run.trainer.state.log_history if "loss" in entry]
        return list(chosen), scores, load_file(tmp_path / out / "model.safetensors")

    choices, scores, weights = trained("live", reference_name_or_path=reference)
    assert len(choices) == 5 * fields.get("gradient_accumulation_steps", 1)
    shutil.rmtree(reference)
    for resumed in ({}, {"resume_from_checkpoint": str(tmp_path / "recalled/checkpoint-3")}):
        common |= resumed
        again, same, found = trained("recalled", reference_embeddings=folder)
        assert again == choices[-len(again) :]
        assert same == pytest.approx(scores, abs=1e-4)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert len(again) < len(choices)


def test_the_card_names_the_folder_and_a_checkpoint_keeps_its_reference(make, embedded, tmp_path):
    given = {"reference_embeddings": embedded(columns=("caption",))[1], "chunks": 2}
    train(prepare(make(given, save_strategy="steps", save_steps=1)))
    card = (tmp_path / "out/README.md").read_text()
    assert "reference_embeddings: reference-embeddings" in card
    assert str(tmp_path) not in card
    other = {**given, "reference_embeddings": embedded(name="another", columns=("caption",))[1]}
    with pytest.raises(ValueError, match="of another run: the embeddings of its reference model are others"):
        prepare(make(other, resume_from_checkpoint=True, max_steps=3)).trainer.train(True)


@pytest.mark.parametrize("score", ["learnability", "hard_learner"])
def test_with_embeddings_of_a_locked_image_tower(make, embedded, save, tmp_path, status, score):
    """No image is decoded, and neither the tower nor the reference is there; the learner alone needs none."""
    given = {"score": score, "chunks": 2}
    if score == "learnability":
        given["reference_embeddings"] = embedded(columns=("caption",))[1]
    tower, kept = save("tower"), str(tmp_path / "tower-embeddings")
    data = ["--dataset", str(tmp_path / "rows.parquet"), "--output_dir", kept, "--device", "cpu"]
    assert status(["precompute", "--vision_name_or_path", tower, *data]) == 0
    lit = {
        "model_name_or_path": None,
        "vision_name_or_path": tower,
        "image_embeddings": kept,
        "text_config": {**TINY, "max_position_embeddings": LENGTH},
        "vocab_size": 300,
    }
    run = prepare(make(given, **lit))
    train(run)
    entry = run.trainer.state.log_history[0]
    assert entry["curation_score_chosen"] > entry["curation_score"]


def test_embeddings_that_are_refused(make, embedded, save, rows, tmp_path, monkeypatch, refused):
    """Before any model is loaded."""
    reference, folder = embedded(columns=("caption",))
    _, other = embedded(name="several")
    (tmp_path / "empty").mkdir()
    rows.select([1, 0, *range(2, 16)]).to_parquet(tmp_path / "mixed.parquet")

    def nothing(*arguments, **settings):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("modeling_siglip_ext.training.run.prepare.build_model", nothing)
    monkeypatch.setattr(SiglipExtModel, "from_pretrained", nothing)
    given = {"reference_embeddings": folder}
    both = {**given, "reference_name_or_path": reference}
    for settings, fields, reason in (
        (both, {}, "reference_name_or_path and curation.reference_embeddings both give the reference: set one"),
        ({**given, "score": "hard_learner"}, {}, "reads no reference model: leave out curation.reference_embeddings"),
        ({"reference_embeddings": str(tmp_path / "none")}, {}, "none.*run `siglip-ext-train precompute --ref"),
        ({"reference_embeddings": str(tmp_path / "empty")}, {}, "empty.*run `siglip-ext-train precompute --ref"),
        ({"reference_embeddings": other}, {}, "captions .* use the dataset and the columns they were made of"),
        (given, {"caption_column": ["captions"]}, "embeddings with other captions"),
        (given, {"dataset": str(tmp_path / "mixed.parquet")}, "embeddings with other captions .*, images"),
        (given, {"dataset": "shards-{0..3}.tar"}, "belong to rows with an index, and a stream or shards have none"),
    ):
        with pytest.raises((ValueError, OSError), match=reason):
            prepare(make(settings, **fields))
    Path(folder, "part-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 parts"):
        prepare(make(given))
    words = ["precompute", "--reference_name_or_path", reference, "--output_dir", folder]
    refused([*words, "--vision_pooling", "mean"], "vision_pooling has no effect with reference_name_or_path")
    refused([*words, "--vision_name_or_path", reference], "not allowed with")
    refused([*words[:1], words[1], f"{reference}s", *words[3:]], "reference_name_or_path=.* there is no such folder")
    refused([*words[:4], f"{folder}/part-00000.safetensors"], "is a file; choose another folder")
    refused(words[:1], "one of the arguments --vision_name_or_path --reference_name_or_path is required")


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


def test_a_smoke_run_looks_for_no_embeddings(tmp_path):
    words = ["--output_dir", str(tmp_path)]
    (tmp_path / "mine.yaml").write_text("curation: {ratio: 0.5, reference_embeddings: far-away}\n")
    recipe = parse_recipe(str(tmp_path / "mine.yaml"), words, change=shrunk)
    small_start(recipe)
    assert recipe.objectives.curation == {"ratio": 0.5, "reference_name_or_path": str(tmp_path / "reference")}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "curation.score=learnability needs curation.reference_name_or_path or curation.reference_embeddings"),
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
