"""Every evaluation of an exported model gives the figures of the model that was exported."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from modeling_siglip_ext import SiglipExtModel, encode_images
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, save_decoder
from modeling_siglip_ext.dual_models import ModelSettings, load_dual_model
from modeling_siglip_ext.evaluation import open_index
from modeling_siglip_ext.evaluation.__main__ import main
from siglip_ext_runtime import ExportedModel


COUNT = 24
NAMES = ["red circle", "blue square", "green stripes"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(COUNT)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "captions": datasets.List(datasets.Value("string")),
            "de": datasets.Value("string"),
            "ja": datasets.Value("string"),
        }
    )
    rows = {
        "image": images,
        "label": [row % 3 for row in range(COUNT)],
        "captions": [[f"picture {row}", f"{row} circle"][: 1 + row % 2] for row in range(COUNT)],
        "de": [f"Bild {row}" for row in range(COUNT)],
        "ja": [f"写真 {row}" for row in range(COUNT)],
    }
    folder = tmp_path_factory.mktemp("data")
    table = datasets.Dataset.from_dict(rows, features=features)
    train = table.select(range(COUNT))  # alike, and not the same
    datasets.DatasetDict({"train": train, "test": table}).save_to_disk(folder / "data")
    (folder / "images").mkdir()
    for place, image in enumerate(images[:3]):
        image.save(folder / "images" / f"{place}.png")
    return folder


ROWS = {
    "retrieval": ["--sheet", "0", "--caption_column", "captions"],
    "multilingual-retrieval": ["--languages", "de", "ja"],
    "zero-shot": [],
    "few-shot": ["--shots", "2", "--seeds", "1"],
    "knn": ["--k", "3"],
    "linear-probe": [],
    "threshold": ["--caption_column", "de"],
}


def figures(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


@pytest.fixture
def run(exported, data, tmp_path):
    """Runs a command on the model and on its export; gives what each wrote."""

    def run(command: str, *options: str, kind: str = "fixed") -> list[dict]:
        folder, out = exported(kind)
        results = []
        for place, engine in ((folder, ["--device", "cpu"]), (out, ["--backend", "onnx"])):
            output = tmp_path / place.name
            paths = ["--output_dir", str(output), "--cache_dir", str(tmp_path / "cache")]
            rows = ["--dataset", str(data / "data")] if command in ROWS else []
            assert main([command, "--model", str(place), *engine, *paths[: 4 if rows else 2], *rows, *options]) == 0
            results.append(json.loads(next(output.glob("*.json")).read_text()))
        return results

    return run


@pytest.mark.parametrize("command", ROWS)
def test_figures_are_those_of_the_model(run, command):
    wanted, found = run(command, *ROWS[command])
    assert figures(found["metrics"]) == pytest.approx(figures(wanted["metrics"]), abs=1e-4)
    assert figures(found["metrics"])
    assert found["model"]["class"] == "ExportedModel"
    assert found["model"]["dtype"] == "fp32 (onnx)"
    assert found["model"]["weights"] != wanted["model"]["weights"]


def test_figures_by_length_of_naflex(run):
    wanted, found = run("retrieval", "--max_num_patches", "9", "30", kind="naflex")
    assert figures(found["metrics"]) == pytest.approx(figures(wanted["metrics"]), abs=1e-4)
    assert len(figures(found["metrics"])) > 6


def test_embeddings_are_those_of_the_model(exported, data, tmp_path):
    found = []
    for place, engine in zip(exported("fixed"), ([], ["--backend", "onnx"])):
        output = tmp_path / place.name
        words = ["--images", str(data / "images"), "--output_dir", str(output)]
        assert main(["embed", "--model", str(place), *engine, *words]) == 0
        found.append(store.read(output)[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert main(["duplicates", "--embeddings", str(output), "--output_file", str(tmp_path / "groups.json")]) == 0


def test_threads_are_those_of_the_engine(exported):
    """Several workers of a server share the cores."""
    _, folder = exported("fixed")
    model, _ = load_dual_model(ModelSettings(str(folder), backend="onnx", threads=1))
    assert model.threads == 1


def test_an_index_is_opened_by_the_export_that_made_it(exported, data, tmp_path):
    pytest.importorskip("faiss", reason="needs the extra search")
    source, folder = exported("fixed")
    words = ["--images", str(data / "images"), "--output_dir", str(tmp_path / "out"), "--index"]
    assert main(["embed", "--model", str(folder), "--backend", "onnx", *words]) == 0
    model, processor = ExportedModel(folder), AutoProcessor.from_pretrained(folder)
    queries = np.asarray(encode_images(model, processor, data / "images"))
    found = open_index(tmp_path / "out", model).search(queries, 1)
    assert [matches[0].name for matches in found] == ["0.png", "1.png", "2.png"]
    with pytest.raises(ValueError, match="made with other weights"):
        open_index(tmp_path / "out", SiglipExtModel.from_pretrained(source))


def test_a_decoder_reads_the_tokens_of_an_export(exported, data, tmp_path):
    folder, out = exported("fixed")
    model, processor = SiglipExtModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    decoder = CaptionDecoder(CaptionDecoderConfig.for_towers(model.config, processor.tokenizer, max_length=12))
    torch.nn.init.normal_(decoder.output.weight)
    save_decoder(decoder, tmp_path / "decoder")
    texts = []
    for place, engine in ((folder, []), (out, ["--backend", "onnx"])):
        words = ["--decoder", str(tmp_path / "decoder"), "--images", str(data / "images"), "--shown", "0"]
        output = tmp_path / place.name
        assert main(["caption", "--model", str(place), *engine, *words, "--output_dir", str(output)]) == 0
        texts.append(json.loads((output / "captions.json").read_text())["captions"])
    assert texts[0] == texts[1]
    assert texts[0][0]["caption"]


def test_the_card_of_an_export_takes_its_figures_alone(exported, data, tmp_path, capsys):
    folder, out = exported("fixed")
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    paths = ["--dataset", str(data / "data"), "--cache_dir", str(tmp_path / "cache")]
    for place, engine in ((copy, ["--backend", "onnx"]), (folder, [])):
        words = [
            "zero-shot",
            "--model",
            str(place),
            *engine,
            *paths,
            "--output_dir",
            str(tmp_path / place.name / "out"),
        ]
        if place == folder:
            words[-1] = str(tmp_path / "other")
        assert main(words) == 0
    assert main(["card", "--model", str(copy), str(copy / "out")]) == 0
    assert "zero-shot accuracy@1" in (copy / "README.md").read_text()
    for place, results in ((copy, tmp_path / "other"), (folder, copy / "out")):
        assert main(["card", "--model", str(place), str(results)]) == 2
        assert f"not those in {place}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--backend onnx"),
        (["--backend", "onnx", "--dtype", "bfloat16"], "for models of torch"),
        (["--backend", "onnx", "--device", "cpu"], "for models of torch"),
        (["--backend", "onnx", "--max_num_patches", "9"], "for NaFlex models"),
    ],
)
def test_what_does_not_fit_is_said(exported, data, tmp_path, capsys, words, message):
    paths = ["--output_dir", str(tmp_path), "--cache_dir", str(tmp_path)]
    rows = ["--dataset", str(data / "data"), *paths]
    assert main(["zero-shot", "--model", str(exported("fixed")[1]), *rows, *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_model_that_was_not_exported_is_said(exported, data, tmp_path, capsys):
    rows = ["--dataset", str(data / "data"), "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path)]
    assert main(["zero-shot", "--model", str(exported("fixed")[0]), *rows, "--backend", "onnx"]) == 2
    assert "to-onnx" in capsys.readouterr().err.splitlines()[-1]
