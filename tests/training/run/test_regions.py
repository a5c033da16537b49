"""`siglip-ext-train regions`, and training from what it wrote."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from modeling_siglip_ext.training.__main__ import main
from modeling_siglip_ext.training.data.detection import DetectionSettings, Detector
from modeling_siglip_ext.training.run import regions
from modeling_siglip_ext.training.run.fields import DataArguments
from modeling_siglip_ext.training.run.prepare import prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.rows import load_rows
from support.detector import small_detector


CAPTIONS = ["red fox", "tree", "dog", "a red tree", "fox"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return small_detector(tmp_path_factory.mktemp("detector"))


def make_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for place, caption in enumerate(CAPTIONS):
        make_image(place).save(folder / f"{place}.png")
        (folder / f"{place}.txt").write_text(caption)
    return folder


def read(folder: Path) -> list[list[dict]]:
    return pyarrow.parquet.read_table(folder)["regions"].to_pylist()


def command(detector: Path, images: Path, folder: Path, *more: str) -> int:
    words = ["regions", "--detector", str(detector), "--dataset", str(images), "--output_dir", str(folder)]
    return main([*words, "--min_score", "0", "--batch_size", "2", *more])


def test_what_is_written_is_what_the_detector_finds(detector, images, tmp_path):
    assert command(detector, images, tmp_path / "boxes") == 0
    settings = DetectionSettings(min_score=0.0)
    own = Detector(str(detector))
    for place, (caption, found) in enumerate(zip(CAPTIONS, read(tmp_path / "boxes"), strict=True)):
        (wanted,) = own([make_image(place)], [settings.queries([caption])], settings)
        assert [one["text"] for one in found] == [one["text"] for one in wanted]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=2e-4)


def test_it_goes_on_where_it_was(detector, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(regions, "PART_ROWS", 2)
    assert command(detector, images, tmp_path / "boxes") == 0
    whole, parts = read(tmp_path / "boxes"), sorted((tmp_path / "boxes").glob("*.parquet"))
    assert len(parts) == 3
    parts[1].unlink()
    kept = parts[0].stat().st_mtime_ns
    assert command(detector, images, tmp_path / "boxes") == 0
    assert read(tmp_path / "boxes") == whole
    assert parts[0].stat().st_mtime_ns == kept
    assert command(detector, images, tmp_path / "boxes", "--overlap", "0.3") == 2
    assert "found otherwise (overlap)" in capsys.readouterr().err
    (images / "0.txt").write_text("another caption")
    assert command(detector, images, tmp_path / "boxes") == 2
    assert "found otherwise (captions)" in capsys.readouterr().err


def test_an_unreadable_image_has_none_and_too_many_are_an_error(detector, images, tmp_path, capsys):
    (images / "1.png").write_bytes(b"no image")
    assert command(detector, images, tmp_path / "boxes") == 2
    assert "max_bad_fraction" in capsys.readouterr().err
    assert command(detector, images, tmp_path / "boxes", "--max_bad_fraction", "0.5") == 0
    found = read(tmp_path / "boxes")
    assert found[1] == []
    assert all(found[place] for place in (0, 2, 3, 4))


def test_a_model_is_trained_from_them(detector, images, tmp_path):
    assert command(detector, images, tmp_path / "boxes", "--max_bad_fraction", "0.5") == 0
    (tmp_path / "tiny.yaml").write_text(
        "vision_config: {image_size: 16, patch_size: 8, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, "
        "num_attention_heads: 1}\ntext_config: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, "
        "num_attention_heads: 1, max_position_embeddings: 32}\nvocab_size: 600\nobjectives: {captioning: 1.0}\n"
        "captioning: {min_score: 0.0}\nper_device_train_batch_size: 2\nmax_steps: 1\nreport_to: none\n"
    )
    words = {"dataset": images, "output_dir": tmp_path / "out", "eval_fraction": 0, "eval_strategy": "no"}
    more = {"regions_file": tmp_path / "boxes"}
    values = [word for name, value in {**words, **more}.items() for word in (f"--{name}", str(value))]
    run = prepare(parse_recipe(str(tmp_path / "tiny.yaml"), values))
    trained = run.trainer.train_dataset
    assert trained is not None
    batch = run.trainer.data_collator([dict(trained[place]) for place in range(2)])
    # captions, phrases and boxes: three targets, none of them empty
    assert batch["caption_weights"].sum(2).bool().tolist() == [[True] * 3] * 2


def test_a_table_of_another_detector_may_name_images_that_lie_elsewhere(images, tmp_path):
    regions = [{"box": [0.0, 0.0, 1.0, 1.0], "text": "a thing", "score": 0.9}]
    rows = [{"file_name": f"{place}.png", "caption": text, "regions": regions} for place, text in enumerate(CAPTIONS)]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    found = load_rows(DataArguments(str(images), regions_file=str(tmp_path / "boxes.json")), 0)
    assert all(row == regions for part in (found.train, found.held_out) for row in part["regions"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--longest", "0"], "leaves nothing to ask for"),
        (["--min_score", "2"], "min_score must be between 0 and 1"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--categories", "missing.txt"], "missing.txt"),
    ],
)
def test_bad_input_is_one_line(detector, images, tmp_path, capsys, more, said):
    assert command(detector, images, tmp_path / "boxes", *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "boxes").exists()


def test_another_kind_of_model_is_refused(images, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert command(tmp_path / "other", images, tmp_path / "boxes") == 2
    assert "other is a bert; regions are found by owlvit and owlv2" in capsys.readouterr().err
    assert command(tmp_path / "othr", images, tmp_path / "boxes") == 2
    assert "there is no such folder; did you mean" in capsys.readouterr().err
