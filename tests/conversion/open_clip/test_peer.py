"""open_clip itself loads what `to-open-clip` writes; skipped where it is not installed (see CONTRIBUTING.md)."""

import importlib.util
import json

import pytest
import torch

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.conversion.__main__ import main
from support.models import make_config


pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed"),
    pytest.mark.filterwarnings("default"),
]
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
VISION, TEXT = {**BASE, "patch_size": 32, "image_size": 256}, {**BASE, "num_hidden_layers": 1, "vocab_size": 400}
CASES = [
    ({"vision": {"image_size": 40, "num_attention_heads": 4}}, None),
    ({"vision": {"hidden_act": "relu"}, "text": {"hidden_act": "quick_gelu"}}, None),
    ({"vision": {"hidden_act": "gelu"}, "text": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}}, None),
    ({"vision": {"intermediate_size": 37, "num_hidden_layers": 3}, "text": {"pooling": "first"}}, None),
    ({"vision": {"image_size": None, "naflex": True, "num_patches": 9}}, None),
    ({"text": {"use_head": False}, "loss_type": "softmax", "logit_bias_init": None}, None),
    ({"vision": VISION, "text": TEXT}, "vit_base_patch32_siglip_256"),
]


@pytest.mark.parametrize(("changes", "name"), CASES)
def test_embeddings_and_tokens_are_those_of_open_clip(changes, name, tmp_path, capsys):
    import open_clip

    text = {"vocab_size": 400, **changes.pop("text", {})}
    config = make_config(text=text, **changes)
    model = SiglipExtModel(config)
    with torch.no_grad():  # larger than usual, so that activations and epsilons show
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(tmp_path / "model")
    tokenizer = train_tokenizer(["a red square", "a blue circle"], 300, 8)
    SiglipExtProcessor(SiglipExtImageProcessor(), tokenizer).save_pretrained(tmp_path / "model")
    assert main(["to-open-clip", str(tmp_path / "model"), str(tmp_path / "oc")]) == 0
    assert "open_clip's own embeddings equal" in capsys.readouterr().out
    settings = json.loads((tmp_path / "oc" / "open_clip_config.json").read_text())["model_cfg"]
    assert settings["vision_cfg"]["timm_model_name"] == name or f"local-dir:{tmp_path / 'oc'}"
    assert open_clip.create_model(f"local-dir:{tmp_path / 'oc'}") is not None
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")
    length = text.get("max_position_embeddings", config.text_config.max_position_embeddings)
    own = tokenizer(["A red CIRCLE!"], padding="max_length", max_length=length)["input_ids"]
    assert theirs(["A red CIRCLE!"]).tolist() == own


def test_a_tower_that_is_another_is_found_out(tmp_path, capsys):
    """By open_clip's own embeddings, where a name is given that nothing here knows."""
    config = SiglipExtConfig(vision_config={**VISION, "hidden_act": "relu"}, text_config=TEXT)
    SiglipExtModel(config).save_pretrained(tmp_path / "model")
    own = ["--timm_model", "vit_base_patch32_siglip_gap_256"]
    assert main(["to-open-clip", str(tmp_path / "model"), str(tmp_path / "oc"), *own]) == 1
    assert "not verified: open_clip" in capsys.readouterr().err
    assert not (tmp_path / "oc").exists()
