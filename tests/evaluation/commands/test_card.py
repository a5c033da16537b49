"""Results in the card of the model they were measured on."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation.__main__ import main
from modeling_siglip_ext.evaluation.commands.card import as_results, dataset_id, note
from modeling_siglip_ext.evaluation.data import Provenance
from modeling_siglip_ext.evaluation.results import Result
from modeling_siglip_ext.hub.card import Card, write_card
from modeling_siglip_ext.hub.facts import facts_of
from support.models import TINY


@pytest.fixture
def place(tmp_path):
    """A model with a card, another model, and 12 images with labels and captions."""
    for number, name in enumerate(("model", "other")):
        torch.manual_seed(number)
        tokenizer = train_tokenizer(["a red square"], vocab_size=300, max_length=16)
        config = SiglipExtConfig(
            text_config={**TINY, "vocab_size": 300, "max_position_embeddings": 16},
            vision_config={**TINY, "image_size": 32, "patch_size": 8},
        )
        SiglipExtModel(config).save_pretrained(tmp_path / name)
        images = SiglipExtImageProcessor(size={"height": 32, "width": 32})
        SiglipExtProcessor(images, tokenizer).save_pretrained(tmp_path / name)
        card = Card(name=name, summary="A model.", facts=facts_of(tmp_path / name), limits="Random.")
        write_card(tmp_path / name, card)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    columns = {
        "image": [Image.fromarray(one) for one in pixels],
        "label": [i % 3 for i in range(12)],
        "caption": [f"picture {i}" for i in range(12)],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["red", "green", "blue"]),
        caption=datasets.Value("string"),
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "my data")
    return tmp_path


def evaluate(place, command: str, *options: str) -> dict:
    out = place / "results"
    paths = ["--output_dir", str(out), "--cache_dir", str(place / "cache"), "--device", "cpu"]
    words = [command, "--model", str(place / "model"), "--dataset", str(place / "my data"), *paths, *options]
    assert main(words) == 0
    return json.loads(next(out.glob(f"{command}-*.json")).read_text())


def test_what_was_measured_stands_in_the_card(place):
    zero_shot = evaluate(place, "zero-shot", "--templates", "none")
    retrieval = evaluate(place, "retrieval", "--sheet", "0")
    assert main(["card", "--model", str(place / "model"), str(place / "results")]) == 0
    card = ModelCard.load(place / "model" / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["zero_shot_accuracy@1"] == pytest.approx(zero_shot["metrics"]["accuracy@1"], abs=1e-6)
    for key, value in retrieval["metrics"].items():
        assert found[f"retrieval_{key}"] == pytest.approx(value, abs=1e-6)
    assert all(result.source_url is None for result in card.data.eval_results)
    measured = card.text.split("<!-- measured -->")[1].split("<!-- /measured -->")[0]
    assert f"| zero-shot accuracy@1 | {100 * zero_shot['metrics']['accuracy@1']:.1f} % | 33.3 % |" in measured
    assert "| text→image R@1 |" in measured
    assert "12 images" in measured
    assert str(place) not in card.content, "a card names no path of this machine"
    before = card.content
    assert main(["card", "--model", str(place / "model"), str(place / "results")]) == 0
    assert (place / "model" / "README.md").read_text(encoding="utf-8") == before, "adding twice changes nothing"


def test_results_of_other_weights_are_refused(place, capsys):
    evaluate(place, "retrieval", "--sheet", "0")
    before = (place / "other" / "README.md").read_bytes()
    assert main(["card", "--model", str(place / "other"), str(place / "results")]) == 2
    assert "weights are not those" in capsys.readouterr().err
    assert (place / "other" / "README.md").read_bytes() == before


def result(**about) -> Result:
    content = {
        "task": "zero-shot",
        "metrics": {"accuracy@1": 0.5, "accuracy@5": 0.75, "mean_per_class_recall": 0.5},
        "dataset": {"split": "validation", "evaluated": 50_000, **about},
        "settings": {"classes": 1000, "labels": "one a row", "templates": "clip_paper"},
        "model": {"name": "m", "weights": "0", "dtype": "bfloat16"},
        "date": "2026-01-02T03:04:05+00:00",
    }
    return Result.from_json(content)


def test_benchmarks_of_the_hub_keep_their_names(tmp_path):
    found = as_results(result(benchmark="imagenet", source="ILSVRC/imagenet-1k"))
    assert (found.dataset, found.dataset_id, found.split) == ("ImageNet", "ILSVRC/imagenet-1k", "validation")
    assert [figure.chance for figure in found.figures] == [0.001, 0.005, None]
    assert found.date == "2026-01-02"
    assert "50,000 images" in found.note
    assert "bfloat16" in found.note
    card = Card("m", "A model.", facts=None, limits="", measured=[found])
    assert card.measured[0].figures[0].metric == "zero_shot_accuracy@1"


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"benchmark": "coco", "source": "hf://datasets/clip-benchmark/wds_mscoco_captions"}, None),
        ({"benchmark": "imagenet-real", "source": "ILSVRC/imagenet-1k"}, "imagenet-real"),
        ({"source": "user/set"}, "user/set"),
        ({"source": "data/with/many/parts"}, "parts"),
        ({"source": "photos.parquet"}, "photos"),
        ({"source": "https://data.example/photos.parquet?signature=secret"}, "photos.parquet"),
    ],
)
def test_names_of_datasets(about, expected):
    assert dataset_id(Provenance(**about)) == (expected or "clip-benchmark/wds_mscoco_captions")


def test_a_benchmark_file_for_what_is_on_the_hub(place):
    from modeling_siglip_ext.hub.card import add_results

    add_results(place / "model", [as_results(result(benchmark="imagenet", source="ILSVRC/imagenet-1k"))])
    file = place / "model" / ".eval_results" / "siglip-ext-measured.yaml"
    (first, *_) = yaml.safe_load(file.read_text())
    assert first["dataset"] == {"id": "ILSVRC/imagenet-1k", "task_id": "zero_shot_accuracy@1"}
    assert first["value"] == 0.5


def test_a_folder_without_a_card_says_who_writes_one(place, capsys):
    evaluate(place, "retrieval")
    (place / "model" / "README.md").unlink()
    assert main(["card", str(place / "results"), "--model", str(place / "model")]) == 2
    assert "model has no README.md: training and `siglip-ext-convert from-jax` write one" in capsys.readouterr().err


def test_two_languages_of_a_dataset_stand_beside_each_other(place):
    from modeling_siglip_ext.hub.card import add_results

    for language in ("en", "de"):
        add_results(place / "model", [as_results(result(source="user/set", config=language))])
    card = ModelCard.load(place / "model" / "README.md")
    found = [(one.dataset_config, one.metric_type) for one in card.data.eval_results]
    assert len(set(found)) == len(found) == 6
    assert {language for language, _ in found} == {"en", "de"}
    assert "user/set, en" in card.text
    assert "user/set, de" in card.text


@pytest.mark.parametrize(("task", "said"), [("zero-shot", True), ("few-shot", True), ("knn", False)])
def test_how_equal_scores_count_is_said_where_scores_are_ranked(task, said):
    assert ("Equal scores" in note(replace(result(source="user/set"), task=task))) == said
