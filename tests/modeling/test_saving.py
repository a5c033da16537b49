"""Saving and loading: stock form where stock suffices, and what another process without this package makes of it."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    SiglipForImageClassification,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
    pipeline,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtTextModel,
    SiglipExtVisionModel,
)
from support.models import make_config, make_processor


# Of outputs: the order of a sum may depend on where in memory equal weights lie.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def inputs(tiny_config) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"input_ids": torch.randint(99, (2, 8)), "pixel_values": torch.randn(2, 3, 32, 32)}


def loading_report(model_class, folder) -> torch.nn.Module:
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model


def test_saved_in_stock_form_and_read_by_both(tiny_config, inputs, tmp_path):
    model = SiglipExtModel(tiny_config).eval()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["model_type"] == "siglip"
    assert settings["architectures"] == ["SiglipModel"]
    assert "save_native" not in (tmp_path / "config.json").read_text()
    expected = model(**inputs).logits_per_image
    stock = loading_report(SiglipModel, tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is SiglipModel
    torch.testing.assert_close(stock.eval()(**inputs).logits_per_image, expected, atol=1e-6, rtol=0)
    ours = loading_report(SiglipExtModel, tmp_path)
    torch.testing.assert_close(ours.eval()(**inputs).logits_per_image, expected, **ROUNDING)
    assert ours.config.vision_config.to_diff_dict() == {**tiny_config.vision_config.to_diff_dict(), "dtype": "float32"}


def test_nothing_is_said_of_the_stock_classes_own_defaults(tiny_config, tmp_path):
    """In a process of its own: transformers says it once."""
    SiglipExtModel(tiny_config).save_pretrained(tmp_path)
    script = (
        "import sys; from modeling_siglip_ext import SiglipExtModel; from transformers import AutoConfig;"
        "SiglipExtModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2]);"
        "AutoConfig.from_pretrained(sys.argv[2]).text_config.to_diff_dict();"
        "AutoConfig.for_model('siglip_text_model', vocab_size=9, bos_token_id=11).to_dict()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "again")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "49406" not in said
    assert "got 11" in said  # of what is wrong it still speaks


def test_loaded_weights_are_not_initialised_again(tiny_config, tmp_path):
    model = SiglipExtModel(tiny_config)
    model.save_pretrained(tmp_path)
    again = SiglipExtModel.from_pretrained(tmp_path).state_dict()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(again[name], tensor), name


def test_our_form_on_demand(tiny_config, inputs, tmp_path):
    model = SiglipExtModel(tiny_config).eval()
    model.save_pretrained(tmp_path, native=False)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip_ext"
    assert not hasattr(model.config, "save_native")
    again = loading_report(AutoModel, tmp_path)
    assert type(again) is SiglipExtModel
    torch.testing.assert_close(again.eval()(**inputs).logits_per_image, model(**inputs).logits_per_image, **ROUNDING)


def test_stock_form_cannot_be_demanded_of_other_models(tiny_config, tmp_path):
    config = SiglipExtConfig(
        text_config=tiny_config.text_config, vision_config=tiny_config.vision_config, loss_type="softmax"
    )
    with pytest.raises(ValueError, match="native=True"):
        SiglipExtModel(config).save_pretrained(tmp_path, native=True)


@pytest.mark.parametrize(
    ("ours", "stock", "key"),
    [(SiglipExtVisionModel, SiglipVisionModel, "pixel_values"), (SiglipExtTextModel, SiglipTextModel, "input_ids")],
)
def test_a_tower_alone(ours, stock, key, tiny_config, inputs, tmp_path, caplog):
    """Read from a full checkpoint without noise about the other tower; saved so that the stock tower reads it."""
    full = SiglipExtModel(tiny_config).eval()
    full.save_pretrained(tmp_path / "full")
    part = {key: inputs[key]}
    expected = full(**inputs)[("vision" if key == "pixel_values" else "text") + "_model_output"].pooler_output
    tower = loading_report(ours, tmp_path / "full").eval()
    torch.testing.assert_close(tower(**part).pooler_output, expected, **ROUNDING)
    tower.save_pretrained(tmp_path / "tower")
    theirs = loading_report(stock, tmp_path / "tower").eval()
    torch.testing.assert_close(theirs(**part).pooler_output, expected, atol=1e-6, rtol=0)
    again = loading_report(ours, tmp_path / "tower").eval()
    torch.testing.assert_close(again(**part).pooler_output, expected, **ROUNDING)


def test_a_stock_classifier_is_read_with_its_mean_pooling(tiny_config, inputs, tmp_path):
    tiny_config.num_labels = 3
    from modeling_siglip_ext import native_config

    stock = SiglipForImageClassification(native_config(tiny_config)).eval()
    stock.save_pretrained(tmp_path / "stock")
    ours = SiglipExtForImageClassification.from_pretrained(tmp_path / "stock").eval()
    pixels = {"pixel_values": inputs["pixel_values"]}
    expected = stock(**pixels).logits
    torch.testing.assert_close(ours(**pixels).logits, expected, atol=1e-6, rtol=0)
    ours.save_pretrained(tmp_path / "ours")
    again = loading_report(AutoModelForImageClassification, tmp_path / "ours")
    assert type(again) is SiglipForImageClassification
    torch.testing.assert_close(again.eval()(**pixels).logits, expected, atol=1e-6, rtol=0)


def test_a_map_pooled_classifier_stays_ours(tiny_config, inputs, tmp_path):
    tiny_config.num_labels = 3
    ours = SiglipExtForImageClassification(tiny_config).eval()
    ours.save_pretrained(tmp_path)
    again = loading_report(AutoModelForImageClassification, tmp_path)
    assert type(again) is SiglipExtForImageClassification
    pixels, labels = {"pixel_values": inputs["pixel_values"]}, torch.tensor([0, 2])
    output = again.eval()(**pixels, labels=labels)
    torch.testing.assert_close(output.logits, ours(**pixels).logits, **ROUNDING)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())


WITHOUT_THIS_PACKAGE = """
import json, sys
sys.modules["modeling_siglip_ext"] = None  # any import of it raises
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder, labels = sys.argv[1], ["red", "green", "blue"]
image = Image.new("RGB", (50, 40), "green")
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
inputs = processor(images=image, text=labels, padding="max_length", return_tensors="pt")
logits = model(**inputs).logits_per_image[0].tolist()
classify = pipeline("zero-shot-image-classification", model=folder)
answers = classify(image, candidate_labels=labels, hypothesis_template="{}")
scores = {answer["label"]: answer["score"] for answer in answers}
print(json.dumps({"model": type(model).__name__, "processor": type(processor).__name__, "logits": logits,
                  "scores": [scores[label] for label in labels]}))
"""


@pytest.fixture
def saved_folder(tmp_path):
    """A model and its processor, saved; texts of 64 tokens, which the stock pipeline takes for granted."""
    processor = make_processor(["red", "green", "blue", "a photo"])
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    model = SiglipExtModel(make_config({**tokens, "max_position_embeddings": 64})).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path, model, processor


def test_a_process_without_this_package_gets_the_same_scores(saved_folder):
    folder, model, processor = saved_folder
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PACKAGE, str(folder)], capture_output=True, text=True, check=True
    )
    theirs = json.loads(result.stdout.strip().splitlines()[-1])
    assert (theirs["model"], theirs["processor"]) == ("SiglipModel", "SiglipProcessor")
    inputs = processor(images=Image.new("RGB", (50, 40), "green"), text=["red", "green", "blue"], return_tensors="pt")
    logits = model(**inputs).logits_per_image[0]
    assert theirs["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
    assert theirs["scores"] == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)


def test_auto_classes_and_pipeline_here(saved_folder):
    folder, model, _ = saved_folder
    model.save_pretrained(folder, native=False)
    assert type(AutoModel.from_pretrained(folder)) is SiglipExtModel
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == 64
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    assert type(classify.model) is SiglipExtModel
    answers = classify(Image.new("RGB", (20, 20)), candidate_labels=["red", "blue"])
    assert {answer["label"] for answer in answers} == {"red", "blue"}
