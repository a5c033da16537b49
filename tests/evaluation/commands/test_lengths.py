"""Figures by the number of patches, from the command line to picture, report and card; against `evaluate` by hand."""

import json
import shutil

import datasets
import pytest
import torch

from modeling_siglip_ext import (
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    encode_images,
    train_tokenizer,
)
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.evaluation import Classes, EvaluationData, evaluate
from modeling_siglip_ext.evaluation.__main__ import main
from modeling_siglip_ext.hub.card import Card, write_card
from modeling_siglip_ext.hub.facts import facts_of
from support.images import noise, read_image
from support.models import TINY, make_config, make_processor


PATCH = 4
NAMES = ["red square", "blue circle", "green triangle"]
IMAGES = [noise(10 + 7 * i, 40 - 2 * i, seed=i) for i in range(12)]
LABELS = [i % 3 for i in range(12)]
CAPTIONS = [f"picture {i}" for i in range(12)]
LENGTHS = (4, 9, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A NaFlex model, one of a fixed size, and data for both."""
    folder = tmp_path_factory.mktemp("lengths")
    torch.manual_seed(0)
    vision = {**TINY, "naflex": True, "num_patches": 16, "patch_size": PATCH, "image_size": None}
    tokenizer = train_tokenizer([*NAMES, *CAPTIONS], vocab_size=300, max_length=8)
    SiglipExtModel(make_config({"vocab_size": 300}, vision)).save_pretrained(folder / "naflex")
    images = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=16)
    SiglipExtProcessor(images, tokenizer).save_pretrained(str(folder / "naflex"))
    SiglipExtModel(make_config({"vocab_size": 300})).save_pretrained(folder / "fixed")
    make_processor(CAPTIONS, length=8).save_pretrained(str(folder / "fixed"))
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "caption": datasets.Value("string"),
    }
    rows = {"image": IMAGES, "label": LABELS, "caption": CAPTIONS}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(folder / "data")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    def run(command: str, *options: str, model: str = "naflex") -> int:
        words = [command, "--model", str(folder / model), "--device", "cpu"]
        paths = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
        return main([*words, *paths, "--dataset", str(folder / "data"), *options])

    return run


def parts(folder, patches: int) -> tuple[SiglipExtModel, SiglipExtProcessor]:
    model = SiglipExtModel.from_pretrained(folder / "naflex").eval()
    images = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=patches)
    return model, SiglipExtProcessor(images, train_tokenizer([*NAMES, *CAPTIONS], vocab_size=300, max_length=8))


def patches_option(lengths=LENGTHS) -> list[str]:
    return ["--max_num_patches", *map(str, lengths)]


def test_zero_shot_by_length(folder, run, tmp_path):
    assert run("zero-shot", *patches_option(reversed(LENGTHS)), "--templates", "none") == 0
    result = json.loads((tmp_path / "out" / "zero-shot-data.json").read_text())
    data = EvaluationData(IMAGES, labels=[[label] for label in LABELS], classes=Classes(NAMES))
    for length in LENGTHS:
        by_hand = evaluate(*parts(folder, length), data)
        for key, value in by_hand.metrics.items():
            assert result["metrics"][f"{key} at {length} patches"] == value
        assert evaluate(*parts(folder, 16), data, max_num_patches=length, batch_tokens=99).metrics == by_hand.metrics
    assert len({json.dumps(result["metrics"][f"accuracy@1 at {length} patches"]) for length in LENGTHS}) > 1
    assert result["settings"]["max_num_patches"] == list(LENGTHS)
    assert read_image(tmp_path / "out" / "zero-shot-data.png").width > 600


def test_retrieval_by_length_and_its_embeddings_are_shared(folder, run, tmp_path, capsys):
    assert run("retrieval", *patches_option(), "--batch_tokens", "40") == 0
    result = json.loads((tmp_path / "out" / "retrieval-data.json").read_text())
    data = EvaluationData(IMAGES, captions=[[text] for text in CAPTIONS])
    for length in LENGTHS:
        for key, value in evaluate(*parts(folder, length), data).metrics.items():
            assert result["metrics"][f"{key} at {length} patches"] == pytest.approx(value)
    before = sorted((tmp_path / "cache").iterdir())
    assert len(before) == len(LENGTHS) + 1
    assert run("retrieval", *patches_option(LENGTHS[:1]), "--sheet", "4") == 0  # one length is as ever
    assert sorted((tmp_path / "cache").iterdir()) == before
    one = json.loads((tmp_path / "out" / "retrieval-data.json").read_text())
    assert one["settings"]["max_num_patches"] == LENGTHS[0]
    assert one["metrics"]["text_to_image_recall@1"] == result["metrics"]["text_to_image_recall@1 at 4 patches"]
    assert run("retrieval", *patches_option(LENGTHS[:1]), "--no_upscale") == 0
    assert len(list((tmp_path / "cache").iterdir())) == len(before) + 1
    assert json.loads((tmp_path / "out" / "retrieval-data.json").read_text())["settings"]["small_images"]
    assert run("retrieval", *patches_option(), "--sheet", "3") == 2
    assert "--sheet has no effect with several --max_num_patches" in capsys.readouterr().err


def test_report_and_card_read_them(folder, run, tmp_path, capsys):
    assert run("zero-shot", *patches_option(), "--templates", "none") == 0
    result = tmp_path / "out" / "zero-shot-data.json"
    capsys.readouterr()
    assert main(["report", str(result)]) == 0
    value = json.loads(result.read_text())["metrics"]["accuracy@1 at 9 patches"]
    assert f"| accuracy@1 at 9 patches | {100 * value:.1f} |" in capsys.readouterr().out
    model = tmp_path / "model"
    shutil.copytree(folder / "naflex", model)
    write_card(model, Card(name="naflex", summary="A model.", facts=facts_of(model), limits="Random."))
    assert main(["card", "--model", str(model), str(result)]) == 0
    card = (model / "README.md").read_text()
    assert f"zero-shot accuracy@1 at 9 patches | {100 * value:.1f} % | 33.3 %" in card
    assert "zero_shot_accuracy@1_at_9_patches" in card


def test_embeddings_on_disk_know_their_patches(folder, tmp_path, capsys):
    words = ["embed", "--model", str(folder / "naflex"), "--dataset", str(folder / "data"), "--device", "cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--max_num_patches", "9", "--batch_tokens", "20"]
    assert main([*words, "--no_upscale"]) == 0
    found = store.read(tmp_path / "out")[0]
    expected = encode_images(*parts(folder, 9), IMAGES, upscale=False, return_tensors="pt")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main(words) == 2
    assert "small_images (there not enlarged, now None)" in capsys.readouterr().err
    words[-3] = "16"
    assert main([*words, "--no_upscale"]) == 2
    assert "max_num_patches (there 9, now 16): choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_num_patches", "64", "144"], "are for NaFlex models: this one takes images of one size"),
        (["--no_upscale"], "are for NaFlex models: this one takes images of one size"),
        (["--batch_tokens", "64"], "are for NaFlex models: this one takes images of one size"),
    ],
)
@pytest.mark.parametrize("command", ["zero-shot", "retrieval"])
def test_a_model_of_one_size_says_so_in_one_line(command, options, message, run, capsys):
    assert run(command, *options, model="fixed") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("siglip-ext-eval: error: ")
    assert message in error


def test_bad_numbers_are_one_line(run, capsys):
    for options, message in (
        (["--max_num_patches", "0", "4"], "max_num_patches=0 must be a whole number of patches, at least 1"),
        (["--batch_tokens", "3"], "batch_tokens=3 cannot hold an image of max_num_patches=16"),
    ):
        assert run("zero-shot", *options) == 2
        assert message in capsys.readouterr().err
