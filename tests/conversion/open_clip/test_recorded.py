"""Small models that open_clip 3.3 and timm built, saved and ran (`record.py`), converted without either."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.open_clip.outputs import as_patches


RECORDED = Path(__file__).with_name("recorded")
ACTIVATIONS = {
    "exact": ("gelu", "gelu"),
    "tanh": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    "defaults": ("gelu", "gelu"),
    "quick": ("quick_gelu", "quick_gelu"),
    "naflex": ("gelu_pytorch_tanh", "gelu"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_embeddings_are_those_of_open_clip(name, tmp_path):
    assert main(["from-open-clip", str(RECORDED / name), str(tmp_path / "out")]) == 0
    model = SiglipExtModel.from_pretrained(tmp_path / "out").eval()
    config, io = model.config, load_file(RECORDED / name / "io.safetensors")
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == ACTIVATIONS[name]
    images = as_patches(io["images"], 8) if config.vision_config.naflex else {"pixel_values": io["images"]}
    with torch.no_grad():
        found = {
            "image": model.get_image_features(**images).pooler_output,
            "text": model.get_text_features(input_ids=io["texts"]).pooler_output,
        }
    for kind, embeds in found.items():
        assert (embeds - io[kind]).abs().max() < 3e-6 * io[kind].abs().max(), kind


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_way_back_says_the_same(name, tmp_path):
    assert main(["from-open-clip", str(RECORDED / name), str(tmp_path / "out")]) == 0
    assert main(["to-open-clip", str(tmp_path / "out"), str(tmp_path / "oc")]) == 0
    first, second = (
        load_file(folder / "open_clip_model.safetensors") for folder in (RECORDED / name, tmp_path / "oc")
    )
    if name == "naflex":  # the stock form demands a head
        second = {key: value for key, value in second.items() if key in first}
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "again")]) == 0
    once, twice = (SiglipExtModel.from_pretrained(tmp_path / out).config for out in ("out", "again"))
    assert once.vision_config.to_dict() == twice.vision_config.to_dict()
    assert once.text_config.to_dict() == twice.text_config.to_dict()


def edited(tmp_path: Path, change) -> str:
    """The folder "exact" with its settings changed."""
    shutil.copytree(RECORDED / "exact", tmp_path / "in")
    path = tmp_path / "in" / "open_clip_config.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    return str(tmp_path / "in")


def text(**fields):
    return lambda settings: settings["model_cfg"]["text_cfg"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text(pool_type="argmax"), "pool_type 'argmax'"),
        (text(no_causal_mask=False), "a causal mask"),
    ],
)
def test_what_is_computed_otherwise_is_refused(change, message, tmp_path, capsys):
    assert main(["from-open-clip", edited(tmp_path, change), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_is_not_known_is_said(tmp_path, capsys):
    def change(settings):
        settings["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_own_patch8"

    source = edited(tmp_path, change)
    options = ["--image_heads", "2"]
    assert main(["from-open-clip", source, str(tmp_path / "guessed"), *options]) == 0
    assert "'vit_own_patch8' has is not known here: gelu is written" in capsys.readouterr().err
    assert main(["from-open-clip", source, str(tmp_path / "told"), *options, "--image_act", "relu"]) == 0
    assert "not known" not in capsys.readouterr().err
    assert SiglipExtModel.from_pretrained(tmp_path / "told").config.vision_config.hidden_act == "relu"


@pytest.mark.parametrize("words", [["--image_act", "relu"], ["--image_heads", "1"], ["--text_heads", "1"]])
def test_what_the_configuration_says_is_not_chosen(words, tmp_path, capsys):
    assert main(["from-open-clip", str(RECORDED / "exact"), str(tmp_path / "out"), *words]) == 2
    assert f"{words[0]}={words[1]} has no effect: the configuration" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_set_on_the_tower_by_open_clip_after_3_3_is_read(tmp_path):
    def change(settings):
        vision = settings["model_cfg"]["vision_cfg"]
        vision["timm_model_name"] = "vit_base_patch16_siglip_224"
        vision["timm_model_kwargs"] = {"num_heads": 4, "act_layer": "gelu_tanh", "embed_dim": 16}

    assert main(["from-open-clip", edited(tmp_path, change), str(tmp_path / "out")]) == 0
    vision = SiglipExtModel.from_pretrained(tmp_path / "out").config.vision_config
    assert (vision.num_attention_heads, vision.hidden_act) == (4, "gelu_pytorch_tanh")


def test_images_are_prepared_as_open_clip_did(tmp_path, capsys):
    def change(settings):
        settings["preprocess_cfg"] = {"std": [0.2, 0.3, 0.4]}

    assert main(["from-open-clip", edited(tmp_path, change), str(tmp_path / "out")]) == 0
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_std"] == [0.2, 0.3, 0.4]
    assert processor["image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert processor["resample"] == 3
    assert "resizes images by 'shortest'" in capsys.readouterr().err


def test_weights_alone_are_taken_for_a_siglip_model_and_that_is_said(tmp_path, capsys):
    shutil.copy(RECORDED / "exact" / "open_clip_model.safetensors", tmp_path / "x.safetensors")
    options = ["--image_heads", "2", "--text_heads", "4"]
    assert main(["from-open-clip", str(tmp_path / "x.safetensors"), str(tmp_path / "out"), *options]) == 0
    assert "there is no open_clip_config.json beside the weights" in capsys.readouterr().err
