"""`siglip-ext-eval` from the command line to the result file, against the same figures computed by hand."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    encode_images,
    encode_texts,
    encode_videos,
    train_tokenizer,
)
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.embedding_parts import Notes, write_part
from modeling_siglip_ext.evaluation import session
from modeling_siglip_ext.evaluation.__main__ import main
from modeling_siglip_ext.evaluation.commands.probe import common_labels
from modeling_siglip_ext.evaluation.data import EvaluationData
from modeling_siglip_ext.evaluation.data.classes import map_labels
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.search_index import open_index
from support.images import read_image
from support.models import TINY
from support.videos import frames, write_video


NAMES = ["red square", "blue_circle", "green triangle"]
COUNT = 24
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(COUNT)]
LABELS = [i % 3 for i in range(COUNT)]
CAPTIONS = [[f"picture {i}", f"number {i} again"][: 1 + i % 2] for i in range(COUNT)]


@pytest.fixture(scope="module")
def parts() -> tuple[SiglipExtModel, SiglipExtProcessor]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*NAMES, "picture number again 0123456789"], vocab_size=300, max_length=16)
    config = SiglipExtConfig(
        text_config={**TINY, "vocab_size": 300, "max_position_embeddings": 16},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
    )
    processor = SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    return SiglipExtModel(config).eval(), processor


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    """A model and data sets, shared: runs write elsewhere."""
    folder = tmp_path_factory.mktemp("eval")
    parts[0].save_pretrained(folder / "model")
    parts[1].save_pretrained(folder / "model")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "kind": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "de": datasets.Value("string"),
            "ja": datasets.Value("string"),
            "sw": datasets.Value("string"),
        }
    )
    columns = {
        "image": IMAGES,
        "label": LABELS,
        "kind": [NAMES[label] for label in LABELS],
        "captions": CAPTIONS,
        "de": [f"Bild {i}" for i in range(COUNT)],
        "ja": [f"写真 {i}" for i in range(COUNT)],
        "sw": [f"picha {i}" if i % 3 else None for i in range(COUNT)],
    }
    rows = datasets.Dataset.from_dict(columns, features=features)
    train = rows.select(range(COUNT))  # alike, and not the same
    datasets.DatasetDict({"train": train, "test": rows}).save_to_disk(folder / "data")
    broken = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    broken[3]["image"] = {"bytes": b"broken", "path": None}
    datasets.Dataset.from_list(broken, features=features).save_to_disk(folder / "broken")
    (folder / "images").mkdir()
    for i in (0, 1, 2):
        IMAGES[i].save(folder / "images" / f"{i}.png")
    IMAGES[1].save(folder / "images" / "copy.png")
    (folder / "images" / "bad.png").write_bytes(b"bad")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """Runs a command and returns the result file's content."""

    def run(command: str, *options: str, data: str = "data") -> dict:
        before = set(tmp_path.glob("out/*.json"))
        arguments = ["--model", str(folder / "model"), "--dataset", str(folder / data)]
        paths = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--device", "cpu"]
        assert main([command, *arguments, *paths, "--part_rows", "10", *options]) == 0
        (new,) = set(tmp_path.glob("out/*.json")) - before
        result = json.loads(new.read_text())
        new.unlink()
        return result

    return run


def unit(parts, images=None, texts=None) -> np.ndarray:
    found = encode_texts(*parts, texts) if images is None else encode_images(*parts, images)
    return found.astype(np.float64)


def strict_ranks(scores: np.ndarray, right: list[int]) -> np.ndarray:
    own = scores[np.arange(len(scores)), right][:, None]
    return (scores >= own - 1e-6).sum(1) - 1


def test_zero_shot(parts, run, tmp_path):
    result = run("zero-shot", "--templates", "none")
    images = unit(parts, images=IMAGES)
    scores = images @ unit(parts, texts=[name.replace("_", " ") for name in NAMES]).T
    assert result["metrics"]["accuracy@1"] == pytest.approx(np.mean(strict_ranks(scores, LABELS) == 0))
    assert result["settings"]["templates"] == "none"
    assert result["dataset"]["rows"] == result["dataset"]["evaluated"] == COUNT
    assert result["model"]["weights"]
    assert result["versions"]["torch"] == version("torch")
    assert read_image(tmp_path / "out" / "zero-shot-data.png").format == "PNG"
    several = run("zero-shot", "--templates", "clip_best", "--class_names", "imagenet")
    assert several["settings"] | {"classes": 1000, "template_count": 8} == several["settings"]


def test_classes_may_be_strings(run, tmp_path):
    """Not in the order of their names: the numbers of ClassLabel and of strings differ, the figures must not."""
    numbers = run("zero-shot", "--templates", "none")
    words = run("zero-shot", "--templates", "none", "--label_column", "kind")
    assert words["metrics"] == pytest.approx(numbers["metrics"])
    (tmp_path / "names.txt").write_text("\n".join(name.replace("_", " ") for name in NAMES))
    given = run("zero-shot", "--templates", "none", "--label_column", "kind", "--class_names", f"{tmp_path}/names.txt")
    assert given["metrics"] == numbers["metrics"]
    assert run("knn", "--k", "1", "--label_column", "kind")["metrics"]["accuracy@1"] == 1  # its own neighbours


def test_embeddings_are_computed_once_for_all_tasks(run, monkeypatch):
    asked, original = [], session.stream_images
    monkeypatch.setattr(session, "stream_images", lambda *a, **k: (asked.append(1), original(*a, **k))[1])
    run("zero-shot", "--templates", "none")
    assert len(asked) == 3  # parts of ten rows
    run("retrieval", "--sheet", "0")
    run("threshold", "--caption_column", "de")
    assert len(asked) == 3


def test_zero_shot_with_labels_from_a_file_and_rows_without_one(parts, run, tmp_path):
    labels = [[[0, 1], [], [2]][i % 3] for i in range(COUNT)]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(labels))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    result = run("zero-shot", "--labels", str(path), "--templates", "none", "--class_names", str(names))
    scores = unit(parts, images=IMAGES) @ unit(parts, texts=[name.replace("_", " ") for name in NAMES]).T
    kept = [i for i in range(COUNT) if labels[i]]
    hits = [scores[i].argmax() in labels[i] for i in kept]
    assert result["metrics"]["accuracy@1"] == pytest.approx(np.mean(hits))
    assert "mean_per_class_recall" not in result["metrics"]
    assert result["dataset"]["without_label"] == 8
    assert result["dataset"]["evaluated"] == 16


def test_a_central_crop_is_big_visions(parts, run):
    processor = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    session.crop_centre(processor)
    found = processor(IMAGES[0], return_tensors="pt").pixel_values[0]
    resized = IMAGES[0].resize((36, 36), Image.Resampling.BICUBIC).crop((2, 2, 34, 34))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    plain, cropped = run("zero-shot", "--templates", "none"), run("zero-shot", "--templates", "none", "--central_crop")
    assert (plain["settings"]["central_crop"], cropped["settings"]["central_crop"]) == (False, True)


def test_a_label_map_restricts_the_choice():
    labels, names = map_labels({"0": [4, 2], "1": "e"}, [[0], [1], [9]], list("abcdef"))
    assert names == ["c", "e"]
    assert labels == [[1, 0], [1], []]
    assert map_labels({"cat": "b", "1": 0}, [[0], [1]], ["a", "b"], ["cat", "dog"])[0] == [[1], [0]]
    with pytest.raises(ValueError, match="sends '0' to 'z', which is no class"):
        map_labels({"0": "z"}, [[0]], ["a"])
    with pytest.raises(ValueError, match="'bird' is neither a number nor one of the data set's labels"):
        map_labels({"bird": "a"}, [[0]], ["a"], ["cat"])


def test_a_label_map_leads_from_the_datas_classes_to_others(run, tmp_path):
    """As ObjectNet's to ImageNet's; the third class has no counterpart and does not count."""
    (tmp_path / "map.json").write_text(json.dumps({"red square": ["tench", "goldfish"], "blue_circle": 2}))
    options = ["--class_names", "imagenet", "--templates", "none", "--label_map", str(tmp_path / "map.json")]
    results = [run("zero-shot", *options, "--label_column", column) for column in ("label", "kind")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["settings"]["classes"] == 3
    assert results[0]["dataset"]["evaluated"] == 16


def test_retrieval_with_several_captions(parts, run, tmp_path):
    result = run("retrieval")
    texts = [text for own in CAPTIONS for text in own]
    owner = np.array([i for i, own in enumerate(CAPTIONS) for _ in own])
    scores = unit(parts, images=IMAGES) @ unit(parts, texts=texts).T
    expected = np.mean(strict_ranks(scores.T, list(owner)) < 5)
    assert result["metrics"]["text_to_image_recall@5"] == pytest.approx(expected)
    hits = [any(owner[j] == i for j in np.argsort(-scores[i])[:5]) for i in range(COUNT)]
    assert result["metrics"]["image_to_text_recall@5"] == pytest.approx(np.mean(hits))
    assert read_image(tmp_path / "out" / "retrieval-data.png").format == "PNG"


def test_multilingual_retrieval_is_the_mean_of_the_languages(run, tmp_path):
    result = run("multilingual-retrieval", "--languages", "de", "ja")
    single = [run("retrieval", "--caption_column", language, "--sheet", "0")["metrics"] for language in ("de", "ja")]
    for key in single[0]:
        assert result["metrics"][key] == pytest.approx((single[0][key] + single[1][key]) / 2)
    assert result["metrics"]["languages"]["ja"] == single[1]
    assert read_image(tmp_path / "out" / "multilingual-retrieval-data.png").format == "PNG"


def test_a_language_is_judged_on_the_images_that_have_a_caption_in_it(parts, run):
    result = run("multilingual-retrieval", "--languages", "de", "sw")
    kept = [i for i in range(COUNT) if i % 3]
    scores = unit(parts, images=[IMAGES[i] for i in kept]) @ unit(parts, texts=[f"picha {i}" for i in kept]).T
    found = result["metrics"]["languages"]["sw"]["image_to_text_recall@5"]
    assert found == pytest.approx(np.mean(strict_ranks(scores, list(range(len(kept)))) < 5))
    assert result["dataset"]["languages"] == {"de": COUNT, "sw": len(kept)}


@pytest.mark.parametrize("command", ["few-shot", "linear-probe", "knn"])
def test_probes(run, command):
    options = {"few-shot": ["--shots", "8", "--seeds", "1", "--l2", "1"], "knn": ["--k", "1"], "linear-probe": []}
    result = run(command, *options[command])
    key = "accuracy@1_8shot" if command == "few-shot" else "accuracy@1"
    # trained on the rows that are tested: what remembers them is right, and a line goes far beyond chance
    assert result["metrics"][key] == 1.0 if command != "linear-probe" else result["metrics"][key] > 0.6
    assert result["dataset"]["train_rows"] == result["dataset"]["test_rows"] == COUNT


def test_a_threshold_is_calibrated_on_shuffled_pairs(parts, run, tmp_path):
    result = run("threshold", "--caption_column", "de")
    assert result["dataset"]["pairs"] == 2 * COUNT
    scale, bias = parts[0].logit_scale.exp().item(), parts[0].logit_bias.item()
    logit = result["metrics"]["threshold"] * scale + bias
    assert result["metrics"]["probability_at_threshold"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
    assert read_image(tmp_path / "out" / "threshold-data.png").format == "PNG"


def test_a_broken_image_does_not_count_and_is_named(run, caplog):
    result = run("zero-shot", "--templates", "none", data="broken")
    assert result["dataset"]["unreadable"] == [3]
    assert result["dataset"]["evaluated"] == COUNT - 1
    assert "1 of 24 images cannot be read" in caplog.text
    result = run("retrieval", data="broken")
    assert result["dataset"]["evaluated"] == COUNT - 1
    assert result["dataset"]["texts"] == sum(map(len, CAPTIONS)) - len(CAPTIONS[3])


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
def test_embed_and_duplicates(parts, folder, tmp_path, capsys, form):
    output = tmp_path / "embeddings"
    arguments = ["--model", str(folder / "model"), "--images", str(folder / "images"), "--device", "cpu"]
    assert main(["embed", *arguments, "--output_dir", str(output), "--format", form, "--part_rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "bad.png cannot be read" in printed
    assert "4 of 5 images are in" in printed
    assert len(list(output.glob(f"part-*.{form}"))) == 3
    if form == "parquet":
        table = pyarrow.parquet.read_table(output)
        assert table["name"].to_pylist() == ["0.png", "1.png", "2.png", "bad.png", "copy.png"]
        found = np.array(table["embedding"].to_pylist())[[0, 1, 2]]
        np.testing.assert_allclose(found, unit(parts, images=IMAGES[:3]), atol=1e-6)
        assert table["error"].to_pylist()[3].endswith("not an image that PIL knows")
    options = ["--threshold", "0.9999", "--output_file", str(tmp_path / "d.json")]
    assert main(["duplicates", "--embeddings", str(output), *options]) == 0
    result = json.loads((tmp_path / "d.json").read_text())
    assert [group["rows"] for group in result["groups"]] == [[1, 4]]


def test_embedding_texts(parts, folder, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\nthree\n")
    arguments = ["--model", str(folder / "model"), "--texts", str(tmp_path / "texts.txt"), "--device", "cpu"]
    assert main(["embed", *arguments, "--output-dir", str(tmp_path / "e")]) == 0
    found = np.array(pyarrow.parquet.read_table(tmp_path / "e")["embedding"].to_pylist())
    np.testing.assert_allclose(found, unit(parts, texts=["one", "two", "three"]), atol=1e-6)


def test_report_puts_runs_side_by_side(folder, tmp_path, capsys):
    common = ["--dataset", str(folder / "data"), "--cache_dir", str(tmp_path / "cache"), "--device", "cpu"]
    for number, templates in enumerate(["none", "clip_best"]):
        output = ["--output_dir", str(tmp_path / f"run{number}"), "--templates", templates]
        assert main(["zero-shot", "--model", str(folder / "model"), *common, *output]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 0
    text = capsys.readouterr().out
    assert "## zero-shot:" in text
    values = [
        json.loads((tmp_path / f"run{n}" / "zero-shot-data.json").read_text())["metrics"]["accuracy@1"] for n in (0, 1)
    ]
    assert f"| accuracy@1 | {100 * values[0]:.1f} | {100 * values[1]:.1f} |" in text
    assert "template_count differs:" in text
    assert main(["report", str(tmp_path), "--output_file", str(tmp_path / "report.md")]) == 0
    assert "accuracy@1" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["zero-shot", "--label_column", "sort"], "no label column 'sort'; it has image, label"),
        (["zero-shot", "--label_column", "kind", "--class_names", "imagenet"], "neither a class index nor one of"),
        (["knn", "--benchmark", "objectnet"], "unknown to knn; known are imagenet, cifar100, pets"),
        (["knn", "--train_split", "dev"], "no split 'dev'; there are test, train"),
        (["threshold", "--benchmark", "pets"], "unknown to threshold; known are coco, flickr30k"),
        (["retrieval", "--caption_column", "de", "--model", "./nowhere"], "./nowhere is no folder"),
        (["retrieval", "--caption_column", "de", "--device", "cuda:99"], "--device cuda:99: "),
        (["zero-shot", "--benchmark", "imagenet-real"], "needs --labels"),
        (["zero-shot", "--benchmark", "coco"], "unknown to zero-shot; known are imagenet"),
        (["zero-shot", "--templates", "best"], "templates 'best' are unknown"),
        (["retrieval", "--caption_column", "text"], "no caption column 'text'"),
        (["retrieval", "--split", "dev"], "no split 'dev'; there are test, train"),
        (["multilingual-retrieval"], "give --languages"),
        (["multilingual-retrieval", "--languages", "fr"], "no columns fr; it has"),
        (["few-shot", "--shots", "5", "0"], "shots must be at least 1, got 0"),
        (["few-shot", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["few-shot", "--l2", "nan"], "l2 must be finite and not negative, got nan"),
        (["knn", "--k", "0"], "k must be at least 1, got 0"),
        (["linear-probe", "--seed", "-1"], "seed must not be negative"),
        (["knn", "--train_split", "test"], "the rows to train on are those to test on (split test)"),
        (["threshold", "--precision", "nan"], "--precision is a share above 0 and at most 1, got nan"),
        (["threshold", "--seed", "-1"], "--seed must not be negative"),
        (["threshold", "--caption_column", "de", "--label_column", "kind"], "is neither 1, for a matched pair, nor 0"),
        (["retrieval", "--caption_column", "de", "--sheet", "-5"], "--sheet must not be negative, got -5"),
        (
            ["retrieval", "--caption_column", "de", "--model", "nowhere/at-all"],
            "--model nowhere/at-all cannot be read",
        ),
        (["retrieval", "--dataset", ""], "the name of the dataset is empty"),
        (["embed", "--images", "nowhere"], "'nowhere' does not exist"),
        (["embed", "--images", __file__], "is a file, not a folder of images"),
        (["embed", "--images", "https://example.org/a.png"], "takes a folder, not https://example.org/a.png: give a"),
    ],
)
def test_mistakes_are_named_in_one_line(folder, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # without a network it would be asked again and again
    arguments = ["--model", str(folder / "model"), "--output_dir", str(tmp_path)]
    arguments += [] if options[0] == "embed" else ["--dataset", str(folder / "data")]
    assert main([options[0], *arguments, *options[1:]]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("siglip-ext-eval: error: ")
    assert message in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--output_dir", "--cache_dir"])
def test_where_nothing_can_be_written_is_said_before_the_model_is_loaded(option, folder, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    words = ["retrieval", "--model", "./nowhere", "--dataset", str(folder / "data"), "--caption_column", "de"]
    assert main([*words, option, str(tmp_path / "taken")]) == 2
    assert f"{option}='{tmp_path / 'taken'}': {tmp_path / 'taken'} is a file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["duplicates", "--embeddings", "none"], ["report", "none"]])
def test_a_folder_is_no_file_to_write(words, tmp_path, capsys):
    assert main([*words, "--output_file", str(tmp_path)]) == 2
    assert f"--output_file='{tmp_path}' is a folder: name a file in it" in capsys.readouterr().err


def test_rows_without_a_caption_cost_only_themselves(folder, tmp_path, caplog):
    """One empty caption of many, and one row with two; as images that cannot be read."""
    texts = ["one", "", "three", ["four", "fifth"], None, "six"]
    rows = [{"image": f"{i}.png", "caption": text} for i, text in enumerate(texts)]
    for i, image in enumerate(IMAGES[: len(texts)]):
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(folder / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    words += ["--caption_column", "caption"]
    paths = ["--output_dir", str(tmp_path / "out")]
    assert main(["threshold", *words, *paths, "--cache_dir", str(tmp_path / "cache")]) == 0
    (result,) = (tmp_path / "out").glob("*.json")
    assert json.loads(result.read_text())["dataset"]["matched"] == 4
    assert "2 of 6 rows have no caption in 'caption' and take no part, e.g. rows 1, 4" in caplog.text
    assert main(["embed", *words, "--output_dir", str(tmp_path / "texts")]) == 0
    embeds, errors, _ = store.read(tmp_path / "texts")
    assert errors == {1: "there is no caption", 4: "there is no caption"}
    assert embeds.isnan().any(1).tolist() == [False, True, False, False, True, False]
    assert "1 of 6 rows have several captions" in caplog.text


def test_empty_lines_of_texts_are_counted(folder, tmp_path, caplog):
    (tmp_path / "texts.txt").write_text("a\n\nb\n")
    words = ["--model", str(folder / "model"), "--texts", str(tmp_path / "texts.txt")]
    assert main(["embed", *words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "1 of 3 lines are empty and left out" in caplog.text


def test_half_a_pair_of_surrogates_is_refused_by_its_text(folder, tmp_path, capsys):
    (tmp_path / "texts.json").write_text('["b", "a \\ud83d"]')
    words = ["--model", str(folder / "model"), "--texts", str(tmp_path / "texts.json")]
    assert main(["embed", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "has no character in place 2" in capsys.readouterr().err


def test_a_name_that_cannot_be_kept_is_said_before_anything_is_computed(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    with open(os.fsencode(tmp_path / "images") + b"/\xff.png", "wb") as file:
        file.write(b"")
    words = ["--images", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    assert main(["embed", "--model", str(tmp_path / "none"), *words]) == 2
    assert r"the name of '\udcff.png' is not in UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_that_was_mended_is_not_that_of_before(folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"broken")
    words = ["embed", "--model", str(folder / "model"), "--images", str(tmp_path / "images")]
    assert main([*words, "--output_dir", str(tmp_path / "none")]) == 2
    assert "none of the 2 images can be read" in capsys.readouterr().err
    IMAGES[0].save(tmp_path / "images" / "a.png")
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    IMAGES[1].save(tmp_path / "images" / "b.png")
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "2 of 2 images are in" in capsys.readouterr().out


def test_a_second_embed_opens_no_image_and_an_index_is_of_its_weights(parts, folder, tmp_path, capsys):
    """Counted by an audit hook: what Python itself asks of the system."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for i, image in enumerate(IMAGES[:6]):
        image.save(images / f"{i}.png")
    (images / "bad.png").write_bytes(b"bad")
    words = ["embed", "--model", str(folder / "model"), "--images", str(images), "--output_dir", str(out)]
    opened: list[str] = []
    counting = [True]  # a hook stays for good
    sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" and counting else None)

    def embed(*options: str) -> tuple[str, set[str]]:
        opened.clear()
        assert main([*words, "--part_rows", "4", *options]) == 0
        return capsys.readouterr().out, {Path(name).name for name in opened if name.startswith(str(images))}

    assert embed()[1] == {"0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "bad.png"}
    said, read = embed("--index")
    assert read == set()
    assert "bad.png cannot be read: " in said
    assert "6 of 7 images are in" in said
    assert "(0 new, 0 changed, 0 moved, 0 deleted, 7 unchanged)" in said
    assert said.endswith(f"the index in {out} is written\n")
    IMAGES[7].save(images / "1.png")
    (images / "0.png").unlink()
    said, read = embed("--index")
    assert read == {"1.png"}
    assert "(0 new, 1 changed, 0 moved, 1 deleted, 5 unchanged)" in said
    counting.clear()
    model, processor = parts
    index = open_index(out, model)
    queries = encode_images(model, processor, [IMAGES[7], IMAGES[3]])
    best = [matches[0] for matches in index.search(queries, 2)]
    assert [match.name for match in best] == ["1.png", "3.png"]
    assert [match.score for match in best] == pytest.approx([1, 1], abs=1e-5)
    other = SiglipExtModel(model.config)
    with pytest.raises(ValueError, match="made with other weights"):
        open_index(out, other)
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    assert main([*words, "--model", str(tmp_path / "other"), "--index"]) == 2
    assert "holds embeddings with other weights" in capsys.readouterr().err


def test_videos_give_a_row_each_interval_and_bad_ones_are_reported(parts, folder, tmp_path, capsys):
    pytest.importorskip("av")
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "below").mkdir(parents=True)
    write_video(videos / "a.mp4", frames(5, seed=1))
    write_video(videos / "below" / "b.mkv", frames(9, seed=2))
    (videos / "empty.mp4").write_bytes(b"")
    words = ["embed", "--model", str(folder / "model"), "--videos", str(videos), "--output_dir", str(out)]
    assert main([*words, "--interval", "2", "--frames_per_second", "2", "--index"]) == 0
    said = capsys.readouterr().out
    assert "empty.mp4 cannot be read: " in said
    assert "5 vectors of 2 of 3 videos are in" in said
    table = pyarrow.parquet.read_table(out).to_pydict()
    names = ["a.mp4", "a.mp4", "below/b.mkv", "below/b.mkv", "below/b.mkv", "empty.mp4"]
    assert table["name"] == names
    assert table["start"] == [0, 2, 0, 2, 4, None]
    expected = encode_videos(*parts, videos, frames_per_second=2, interval=2)
    found = np.array(table["embedding"])
    np.testing.assert_allclose(found[:5], np.concatenate([one.intervals for one in expected]), atol=1e-6)
    match = open_index(out, parts[0]).search(found[3:4], 1)[0][0]
    assert (match.name, match.start, match.end) == ("below/b.mkv", 2, 4)
    (videos / "a.mp4").unlink()
    assert main([*words, "--interval", "2", "--frames_per_second", "2"]) == 0
    assert "(0 new, 0 changed, 0 moved, 1 deleted, 2 unchanged)" in capsys.readouterr().out
    assert main(words) == 2
    assert (
        "with other frames_per_second (there 2.0, now 1.0), interval (there 2.0, now None)" in capsys.readouterr().err
    )


def test_a_probe_needs_data_of_its_own(folder, tmp_path, capsys):
    """From a single file both sets would be the same rows, and every probe near perfect."""
    datasets.load_from_disk(str(folder / "data"))["train"].to_parquet(tmp_path / "rows.parquet")
    for given, message in (
        ([], "give --dataset or --benchmark"),
        (["--dataset", str(tmp_path / "rows.parquet")], "has no splits"),
    ):
        assert main(["knn", "--model", str(folder / "model"), *given]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(folder, tmp_path):
    base = ["retrieval", "--model", str(folder / "model"), "--dataset", str(folder / "data"), "--device", "cpu"]
    base += ["--part_rows", "5", "--sheet", "0"]
    assert main([*base, "--output_dir", str(tmp_path / "one"), "--cache_dir", str(tmp_path / "cache1")]) == 0
    paths = ["--output_dir", str(tmp_path / "two"), "--cache_dir", str(tmp_path / "cache2")]
    # no name of the host is looked up; torchrun's own store gives the port, so that none can be taken meanwhile
    launcher = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "modeling_siglip_ext.evaluation", *base, *paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-20000:]}"
    one, two = (json.loads((tmp_path / n / "retrieval-data.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]
    assert (one["processes"], two["processes"]) == (1, 2)


@pytest.mark.parametrize("word", ["--no-canonicalize", "--no_canonicalize"])
def test_switches_are_taken_with_dashes_and_underscores(run, word):
    assert run("zero-shot", "--label_column", "label", word)["settings"]["canonicalize"] is False


def test_classes_of_two_sets_are_matched_by_name_or_left_alone():
    def data(labels, names):
        return EvaluationData(labels=[[one] for one in labels], label_names=names)

    train, test = data([0, 1, 2], ["a_b", "c", "z"]), data([1, 0], ["c", "a b"])
    assert common_labels({"train": train, "test": test}) == {"train": [0, 1, 2], "test": [0, 1]}
    raw = data([5, 7], None)
    assert common_labels({"train": train, "test": raw}) == {"train": [0, 1, 2], "test": [5, 7]}
    with pytest.raises(ValueError, match="the test rows have labels below 0"):
        common_labels({"train": train, "test": data([-1], ["c"])})


def test_duplicates_of_texts_say_what_was_left_out(tmp_path, capsys):
    rows = torch.randn(20, 8)
    rows[5], rows[7], rows[9] = rows[2], rows[2], torch.nan
    rows[11] = 0
    settings = {"kind": "text", "rows": 20, "part_rows": 6, "form": "parquet"}
    write_json(tmp_path / store.SETTINGS, settings)
    for part, first in enumerate(range(0, 20, 6)):
        notes = Notes({3: "broken"} if part == 1 else {})
        write_part(tmp_path / f"part-{part:05d}.parquet", first, rows[first : first + 6], notes)
    output = tmp_path / "d.json"
    options = ["--embeddings", str(tmp_path), "--output_file", str(output)]
    assert main(["duplicates", *options, "--threshold", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "2  5  7"
    assert shown[1] == "left out: 1 unreadable rows, 1 whose embedding is zero or not finite"
    result = json.loads(output.read_text())
    assert [(group["rows"], group["pairs"]) for group in result["groups"]] == [([2, 5, 7], 3)]
    assert result["metrics"]["pairs"] == 3
    output.unlink()
    for threshold in ("1.5", "nan"):
        assert main(["duplicates", *options, "--threshold", threshold]) == 2
        assert "a cosine is between -1 and 1" in capsys.readouterr().err
    (tmp_path / "part-00003.parquet").unlink()
    assert main(["duplicates", *options]) == 2
    assert "lacks 1 of 4 parts of its embeddings" in capsys.readouterr().err
    assert not output.exists()


def test_the_result_of_another_model_is_not_overwritten(parts, folder, tmp_path, capsys):
    other = SiglipExtModel(parts[0].config)
    with torch.no_grad():
        other.logit_scale.add_(1)
    other.save_pretrained(tmp_path / "other")
    parts[1].save_pretrained(tmp_path / "other")
    words = ["--dataset", str(folder / "data"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--cache_dir", str(tmp_path / "cache"), "--templates", "none"]
    for _ in range(2):  # the same model may be judged again
        assert main(["zero-shot", "--model", str(folder / "model"), *words]) == 0
    before = (tmp_path / "out" / "zero-shot-data.json").read_bytes()
    capsys.readouterr()
    assert main(["zero-shot", "--model", str(tmp_path / "other"), *words]) == 2
    said = capsys.readouterr().err
    assert f"zero-shot-data.json is of other weights, {folder / 'model'} in float32: choose another" in said
    assert (tmp_path / "out" / "zero-shot-data.json").read_bytes() == before
