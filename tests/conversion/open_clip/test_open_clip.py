"""open_clip's names against a list that open_clip and timm wrote themselves, and the way there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.name_map import array_shapes
from modeling_siglip_ext.conversion.open_clip.config import open_clip_config, timm_name
from modeling_siglip_ext.conversion.open_clip.names import open_clip_rules
from modeling_siglip_ext.conversion.open_clip.towers import named_towers
from modeling_siglip_ext.conversion.released.catalogue import entries, find


# state_dict() of open_clip 3.3.0 and timm 1.0.31, built on the meta device
NAMES = json.loads(Path(__file__).with_name("open_clip_names.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_of_open_clip(name):
    config = find(name).config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = array_shapes(open_clip_rules(config), shapes)
    assert {key: list(shape) for key, shape in found.items()} == NAMES[name]


@pytest.mark.parametrize("case", ["siglip1_mu16", "siglip2_naflex", "siglip_i18n_so400m_nohead"])
def test_there_and_back_is_the_identity(case, converted, tmp_path):
    folder = converted(case, "--format", "ext")
    assert main(["to-open-clip", str(folder), str(tmp_path / "oc")]) == 0
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "back"), "--format", "ext"]) == 0
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert main(["verify", str(tmp_path / "back"), "--against", str(tmp_path / "oc")]) == 0
    old, new = SiglipExtModel.from_pretrained(folder).config, SiglipExtModel.from_pretrained(tmp_path / "back").config
    assert old.text_config.to_dict() == new.text_config.to_dict()
    assert old.vision_config.to_dict() == new.vision_config.to_dict()


def test_query_key_and_value_keep_their_order(converted, tmp_path):
    folder = converted("siglip1_mu16")
    assert main(["to-open-clip", str(folder), str(tmp_path / "oc")]) == 0
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "oc" / "open_clip_model.safetensors")
    block = "vision_model.encoder.layers.2.self_attn"
    expected = torch.cat([ours[f"{block}.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(theirs["visual.trunk.blocks.2.attn.qkv.weight"], expected)
    joined = ours["vision_model.head.attention.in_proj_weight"]
    assert torch.equal(theirs["visual.trunk.attn_pool.q.weight"], joined[:32])
    assert torch.equal(theirs["visual.trunk.attn_pool.kv.weight"], joined[32:])
    assert theirs["logit_scale"].shape == ()


def test_settings_of_every_catalogue_file_that_open_clip_has():
    for entry in entries().values():
        if entry.family not in ("siglip", "siglip2"):
            continue
        vision = entry.config().vision_config
        name = timm_name(vision)
        # timm names the towers of 256 px and more at patch 16, and those of SigLIP 2 at patch 32, as they were trained
        assert name is None or named_towers()[name].hidden_act == "gelu_pytorch_tanh"
        settings = open_clip_config(entry.config(), name or "described", {})["model_cfg"]
        text = settings["text_cfg"]
        size = entry.config().text_config.intermediate_size
        assert int(text["width"] * text["mlp_ratio"]) == size  # open_clip cuts the fraction off
        assert text["context_length"] == entry.text_length
        assert ("proj_bias" in text) == (entry.embedding_size is not None)
        assert settings["vision_cfg"]["image_size"] in (entry.image_size, 256)


def test_an_image_size_of_the_settings_is_kept(converted, tmp_path):
    """Positions of 4 x 4 patches of 16 pixels: 64, or up to 79."""
    assert main(["to-open-clip", str(converted("siglip1_mu16")), str(tmp_path / "oc")]) == 0
    path = tmp_path / "oc" / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["vision_cfg"]["image_size"] = 70
    settings["preprocess_cfg"]["interpolation"] = "bicubic"
    path.write_text(json.dumps(settings))
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "back")]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "back").vision_config.image_size == 70
    processor = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert processor["resample"] == 3
    settings["model_cfg"]["vision_cfg"]["image_size"] = 96
    path.write_text(json.dumps(settings))
    assert main(["from-open-clip", str(tmp_path / "oc"), str(tmp_path / "bad")]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"visual.trunk.extra": torch.zeros(1)}), "understands visual.trunk.extra"),
        (lambda t: t.pop("text.ln_final.bias"), "has no text.ln_final.bias"),
        (lambda t: t.update({"text.token_embedding.weight": torch.zeros(3)}), "should have 2 sides"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("visual")], "has no visual.trunk"),
    ],
)
def test_another_model_is_refused(change, message, converted, tmp_path, capsys):
    assert main(["to-open-clip", str(converted("siglip1_mu16")), str(tmp_path / "oc")]) == 0
    path = tmp_path / "oc" / "open_clip_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert main(["from-open-clip", str(path), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_open_clip_cannot_build_is_refused(converted, tmp_path, capsys):
    for case, message in (("lit_bert", "two SigLIP towers"), ("clip_softmax_nobias", "MAP-pooled")):
        assert main(["to-open-clip", str(converted(case)), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    config = find("siglip2_b16_224").config()
    config.text_config.token_embedding_size = 96
    with pytest.raises(CheckpointError, match="bottlenecked"):
        open_clip_rules(config)


def test_pickles_are_never_opened(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros(1))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04N.")
    source = str(tmp_path / "open_clip_pytorch_model.bin")
    assert main(["from-open-clip", source, str(tmp_path / "out")]) == 2
    assert "never loaded" in capsys.readouterr().err
