"""`siglip-ext-convert to-onnx` from the command line to the folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTImageProcessor,
)

from modeling_siglip_ext import SiglipExtModel, SiglipExtProcessor, encode_images, encode_texts
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.commands.export import text_lines
from modeling_siglip_ext.conversion.commands.export_figures import evaluation_of
from modeling_siglip_ext.conversion.export import export, onnx_file
from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model
from modeling_siglip_ext.conversion.export.figures import before_and_after
from modeling_siglip_ext.conversion.export.parity import compare
from modeling_siglip_ext.conversion.export.report import TowerReport
from modeling_siglip_ext.conversion.export.samples import Samples
from modeling_siglip_ext.hub.card import ModelCard
from siglip_ext_runtime import ExportedModel
from support.exports import compiled, save_model
from support.images import noise
from support.models import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, "fixed")
    return folder


def refused(capsys, *words: str) -> str:
    """What the command says of bad input: one line, and nothing is left."""
    out = Path(words[1])
    before = sorted(out.parent.iterdir()) if out.parent.exists() else []
    status = main(["to-onnx", *words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else []) == before
    line = lines[-1]
    assert line.startswith("siglip-ext-convert: error: ")
    return f"{status} {line}"


def test_the_folder_holds_what_runtimes_read(exported):
    folder, out = exported("fixed")
    assert {path.name for path in out.iterdir()} == {
        *("vision_model.onnx", "text_model.onnx", "export.json", "export_report.json", "README.md", "config.json"),
        *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    texts, image = ["a red circle", "Blue Square!"], torch.randint(0, 255, (3, 40, 50), dtype=torch.uint8)
    wanted, found = (AutoProcessor.from_pretrained(place)(text=texts, images=[image]) for place in (folder, out))
    assert found["input_ids"] == wanted["input_ids"]
    torch.testing.assert_close(found["pixel_values"], wanted["pixel_values"], rtol=0, atol=0)
    settings = json.loads((out / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 32, "width": 32}
    assert "image_processor" not in settings


def report_of(out: Path) -> dict:
    return json.loads((out / "export_report.json").read_text())


def test_the_report_says_what_was_kept(exported):
    report = report_of(exported("fixed")[1])
    assert report["precision"] == "fp32"
    assert report["answers"] == {"text_of_image": 1.0, "image_of_text": 1.0}
    for name, tower in report["towers"].items():
        assert tower["file"] == f"{name}.onnx"
        assert tower["bytes"] == (exported("fixed")[1] / tower["file"]).stat().st_size
        assert 1 - tower["parity"]["cosine_least"] < 1e-9
        assert tower["parity"]["largest_difference"] < 1e-6
        assert tower["parity"]["batch_largest_difference"] < 1e-6
        assert tower["cpu_time_ratio"] > 0
        assert 10e6 < tower["peak_memory"] < 300e6  # a tiny model, without torch
    assert {"onnx", "onnxruntime", "torch"} <= set(report["libraries"])


def test_figures_before_and_after_are_in_the_report(exported, tmp_path):
    """On an export that is there already: what a command adds to it."""
    folder, out = exported("fixed")
    rows = {"image": [noise(30, 40, seed) for seed in range(8)], "caption": [f"picture {seed}" for seed in range(8)]}
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    figures = before_and_after(folder, out, evaluation_of(str(tmp_path / "rows.parquet"), None), "onnx")
    assert {"text_to_image_recall@1", "image_to_text_recall@5"} <= set(figures)
    assert all(before == pytest.approx(after, abs=1e-6) for before, after in figures.values())


def test_the_card_says_how_to_run_it(exported):
    card = ModelCard.load(exported("fixed")[1] / "README.md")
    assert card.data.library_name == "onnx"
    assert "least cosine" in card.text
    assert "ExportedModel" in card.text


def test_float16_stays_near(exported):
    half, full = (report_of(exported("fixed", precision)[1]) for precision in ("fp16", "fp32"))
    for name, tower in half["towers"].items():
        assert 1e-9 < 1 - tower["parity"]["cosine_least"] < 1e-5
        assert tower["parity"]["largest_difference"] < 5e-3  # 1e-3 at the width of real towers
        assert tower["bytes"] < full["towers"][name]["bytes"]


def test_below_the_bars_nothing_is_left(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "export_tower", fake_tower := FakeTower())
    said = refused(capsys, str(folder), str(tmp_path / "out"), "--min_cosine", "0.99")
    assert said.startswith("1 ")
    assert "not verified: vision_model: least cosine 0.98" in said
    said = refused(capsys, str(folder), str(tmp_path / "out"), "--min_agreement", "0.9")
    assert said.startswith("1 ")
    assert "equal answers" in said
    assert fake_tower.calls == 4
    assert main(["to-onnx", str(folder), str(tmp_path / "out"), "--min_cosine", "0.97"]) == 0


def test_both_towers_in_one_file_have_answers_to_compare(monkeypatch):
    torch.manual_seed(0)
    wanted = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    found = torch.cat([wanted[:, :4], wanted[:, 4:].roll(1, 0)], dim=1)  # each text beside another's image
    numbers = [torch.tensor([place]) for place in range(6)]
    samples = Samples([{"image": one} for one in numbers], [{"text": one} for one in numbers], "")
    about = {"name": "model", "samples": samples, "wanted": {"model": wanted, "text_model": wanted}}
    for rows, equal in ((wanted, 1.0), (found, 0.0)):
        monkeypatch.setattr(export, "by_file", lambda *_, rows=rows: lambda inputs: rows[inputs["text"]])
        answers = export.judge(Path("model.onnx"), **about).answers
        ours, theirs = (pairs[:, 4:] @ pairs[:, :4].T for pairs in (wanted, rows))
        assert answers.text_of_image == (ours.argmax(1) == theirs.argmax(1)).float().mean()
        assert answers.image_of_text == (ours.argmax(0) == theirs.argmax(0)).float().mean()
        assert (answers.least == 1) == (equal == 1)


class FakeTower:
    """An export whose vectors differ."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder, name, draft, options, samples, wanted, others):
        self.calls += 1
        found = wanted[name].roll(1, 0)
        parity = replace(compare(wanted[name], found, found[:2]), cosine_least=0.98)
        return TowerReport(f"{name}.onnx", 1, parity, None, 1.0, 1), found


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    said = refused(capsys, str(tmp_path / "nothing"), out)
    assert said.startswith("2 ")
    assert "does not exist" in said
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(capsys, str(tmp_path / "empty"), out)
    assert "exists" in refused(capsys, str(folder), str(tmp_path / "empty"))
    assert "--limit has no effect" in refused(capsys, str(folder), out, "--limit", "3")
    rows = ["--dataset", str(tmp_path / "none.parquet")]
    assert "none.parquet" in refused(capsys, str(folder), out, *rows)
    assert "between 0 and 1" in refused(capsys, str(folder), out, "--min_cosine", "98")
    assert "holds no image files" in refused(capsys, str(folder), out, "--images", str(tmp_path / "empty"))
    (tmp_path / "texts.txt").write_text("\n\n")
    assert "holds no text" in refused(capsys, str(folder), out, "--texts", str(tmp_path / "texts.txt"))
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n b \r\n")
    assert text_lines(str(tmp_path / "texts.txt")) == ["a cat", "b"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bad.png").write_bytes(b"bad")
    assert "bad.png" in refused(capsys, str(folder), out, "--images", str(tmp_path / "pictures"))


def test_what_cannot_be_exported_is_said(folder, tmp_path, capsys):
    without = Path(shutil.copytree(folder, tmp_path / "without"))
    (without / "processor_config.json").unlink()
    assert "processor_config.json" in refused(capsys, str(without), str(tmp_path / "out"))
    speechless = Path(shutil.copytree(folder, tmp_path / "speechless"))
    (speechless / "tokenizer.json").unlink()
    assert "no tokenizer at" in refused(capsys, str(speechless), str(tmp_path / "out"))
    assert main(["to-onnx", str(speechless), str(tmp_path / "image_alone"), "--towers", "image"]) == 0
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (without / "config.json").write_text(json.dumps(config))
    assert "pooling" in refused(capsys, str(without), str(tmp_path / "out"))
    SiglipExtModel.from_pretrained(folder).vision_model.save_pretrained(tmp_path / "tower")
    shutil.copy(folder / "processor_config.json", tmp_path / "tower")
    words = str(tmp_path / "tower"), str(tmp_path / "out"), "--towers", "image", "--min_agreement", "0.9"
    assert "an image tower alone gives no answers" in refused(capsys, *words)


def test_a_missing_package_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    assert "pip install siglip-ext[onnx]" in refused(capsys, str(folder), str(tmp_path / "out"))


@pytest.mark.slow
def test_a_stopped_export_leaves_nothing(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_settings", stop)
    with pytest.raises(KeyboardInterrupt):
        export_model(folder, tmp_path / "out", ExportOptions(towers=("text_model",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", pytest.param("aoti", marks=compiled)])
def test_lit_with_towers_from_elsewhere(form, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "a"]
    words = {word: place for place, word in enumerate(vocabulary)}
    text = BertModel(BertConfig(**TINY, vocab_size=len(words)), add_pooling_layer=False)
    vision = Dinov2Model(Dinov2Config(**TINY, image_size=40, patch_size=8))  # and its processor makes 32
    model = SiglipExtModel.from_vision_text_pretrained(vision, text).eval()
    model.save_pretrained(tmp_path / "lit")
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    SiglipExtProcessor(images, BertTokenizer(vocab=words, model_max_length=12)).save_pretrained(str(tmp_path / "lit"))
    report = export_model(tmp_path / "lit", tmp_path / "out", ExportOptions(format=form))
    assert all(tower.parity.largest_difference < 1e-6 for tower in report.towers.values())
    found, processor = ExportedModel(tmp_path / "out", form), AutoProcessor.from_pretrained(tmp_path / "out")
    texts, pictures = ["red circle", "a red red circle circle", "a"], [noise(30, 40, 0), noise(50, 20, 1)]
    np.testing.assert_allclose(
        encode_texts(found, processor, texts), encode_texts(model, processor, texts), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
        encode_images(found, processor, pictures), encode_images(model, processor, pictures), rtol=0, atol=1e-6
    )
