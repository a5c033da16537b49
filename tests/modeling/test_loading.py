"""Weights are loaded whole or not at all: towers out of larger models, missing ones, shards, shapes and adapters."""

import copy
import json
import logging
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtTextConfig,
    SiglipExtTextModel,
    SiglipExtVisionConfig,
    SiglipExtVisionModel,
)
from modeling_siglip_ext.loading import load_whole, prefix_of
from support.models import TINY, TINY_TEXT, TINY_VISION, make_config


LANGUAGE = {**TINY, "num_hidden_layers": 1, "vocab_size": 64}


def make_tower(**fields) -> SiglipExtVisionModel:
    return SiglipExtVisionModel(SiglipExtVisionConfig(**TINY_VISION, **fields)).eval()


def save_inside(tower, kind: str, folder) -> str:
    """A vision-language model around a tower, saved; returns its folder."""
    tower.save_pretrained(folder / "tower")
    vision = AutoConfig.from_pretrained(folder / "tower")
    if kind == "llava":
        text = LlamaConfig(**LANGUAGE)
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
        )
    else:
        text = {**LANGUAGE, "model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1}
        config = PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=63, projection_dim=32)
        model = PaliGemmaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.save_pretrained(folder / "vlm")
    return str(folder / "vlm")


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["map", "none"])
@pytest.mark.parametrize("kind", ["llava", "paligemma"])
def test_a_tower_is_found_within_a_vision_language_model(kind, pooling, tmp_path, caplog):
    tower, pixels = make_tower(pooling=pooling), torch.randn(2, 3, 32, 32)
    folder = save_inside(tower, kind, tmp_path)
    expected = tower(pixels)
    assert SiglipExtVisionConfig.from_pretrained(folder).pooling == pooling
    with caplog.at_level(logging.WARNING):
        found = SiglipExtVisionModel.from_pretrained(folder).eval()
    assert "LOAD REPORT" not in caplog.text  # nothing of the tower is missing, and of the rest nothing is wanted
    assert torch.equal(found(pixels).last_hidden_state, expected.last_hidden_state)
    text = SiglipExtTextModel(SiglipExtTextConfig(**TINY_TEXT))
    if pooling == "none":
        with pytest.raises(ValueError, match=r"gives no image embedding; choose another pooling"):
            SiglipExtModel.from_vision_text_pretrained(folder, text)
        averaging = SiglipExtVisionModel.from_pretrained(folder, pooling="mean").eval()
        dual = SiglipExtModel.from_vision_text_pretrained(averaging, text).eval()
        pooled = expected.last_hidden_state.mean(1)
    else:
        dual = SiglipExtModel.from_vision_text_pretrained(folder, text).eval()
        pooled = expected.pooler_output
    torch.testing.assert_close(dual.get_image_features(pixels).pooler_output, pooled)
    found.save_pretrained(tmp_path / "again")  # under its own names, not those in the larger model
    assert not any("tower" in name for name in load_file(tmp_path / "again" / "model.safetensors"))
    again = SiglipExtVisionModel.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(pixels).last_hidden_state, expected.last_hidden_state)


def test_a_head_that_the_larger_model_left_out_is_missed_by_name(tmp_path):
    folder = save_inside(make_tower(pooling="none"), "llava", tmp_path)
    settings = json.loads((tmp_path / "vlm" / "config.json").read_text())
    del settings["vision_config"]["vision_use_head"]
    (tmp_path / "vlm" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r'head\.attention.*load it with pooling="none" if it has no head'):
        SiglipExtVisionModel.from_pretrained(folder)
    SiglipExtVisionModel.from_pretrained(folder, pooling="none")


@torch.no_grad()
def test_a_tower_from_elsewhere_within_a_vision_language_model(tmp_path):
    config = CLIPVisionConfig(**TINY_VISION)
    clip = CLIPVisionModel(config).eval()
    vlm = LlavaForConditionalGeneration(LlavaConfig(vision_config=config, text_config=LlamaConfig(**LANGUAGE)))
    vlm.model.vision_tower.load_state_dict(clip.state_dict())
    vlm.save_pretrained(tmp_path)
    text = SiglipExtTextModel(SiglipExtTextConfig(**TINY_TEXT))
    dual = SiglipExtModel.from_vision_text_pretrained(str(tmp_path), text).eval()
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        dual.vision_model(pixels).last_hidden_state, clip(pixels).last_hidden_state, rtol=0, atol=1e-6
    )


def remove(folder, pattern: str) -> None:
    """Take tensors out of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if pattern not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize(
    ("model_class", "without"),
    [
        (SiglipExtModel, "text_model.head"),
        (SiglipExtModel, "logit_bias"),
        (SiglipExtTextModel, "text_model.encoder.layers.1"),
        (SiglipExtVisionModel, "position_embedding"),
        (SiglipExtForImageClassification, "vision_model.post_layernorm"),
    ],
)
def test_a_missing_weight_is_an_error_that_names_it(model_class, without, tmp_path):
    SiglipExtModel(make_config()).save_pretrained(tmp_path)
    model_class.from_pretrained(tmp_path)
    remove(tmp_path, without)
    with pytest.raises(ValueError, match=rf"has no weights for .*{without.split('.')[-1]}") as raised:
        model_class.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_more_layers_than_the_configuration_says_are_an_error_unless_fewer_are_asked_for(tmp_path):
    model = SiglipExtModel(make_config())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shallow = copy.deepcopy(config)
    shallow["text_config"]["num_hidden_layers"] = 1
    asked = SiglipExtConfig.from_dict(shallow)
    assert len(SiglipExtModel.from_pretrained(tmp_path, config=asked).text_model.encoder.layers) == 1
    assert len(SiglipExtTextModel.from_pretrained(tmp_path, num_hidden_layers=1).encoder.layers) == 1
    (tmp_path / "config.json").write_text(json.dumps(shallow))
    for load in (SiglipExtModel.from_pretrained, partial(load_whole, AutoModel.from_pretrained)):
        with pytest.raises(ValueError, match=r"weights of more layers .*encoder\.layers\.1\..*mend num_hidden_layers"):
            load(tmp_path)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_missing_weight_of_a_tower_from_elsewhere(kind, tmp_path):
    towers = {"vision": ViTModel(ViTConfig(**TINY_VISION)), "text": BertModel(BertConfig(**TINY, vocab_size=60))}
    for name, tower in towers.items():
        tower.save_pretrained(tmp_path / name)
    remove(tmp_path / kind, "layer.1")
    with pytest.raises(ValueError, match=r"has no weights for .*layers?\.1"):
        SiglipExtModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))


def test_folders_of_another_kind_are_refused(tmp_path):
    BertModel(BertConfig(**TINY, vocab_size=60)).save_pretrained(tmp_path / "bert")
    ViTModel(ViTConfig(**TINY_VISION)).save_pretrained(tmp_path / "vit")
    make_tower().save_pretrained(tmp_path / "image_tower")
    vit, bert, image_tower = (str(tmp_path / name) for name in ("vit", "bert", "image_tower"))
    with pytest.raises(ValueError, match="has no weights for"):
        SiglipExtTextModel.from_pretrained(bert)
    with pytest.raises(ValueError, match="ViTModel takes pixel_values, a text tower must take input_ids"):
        SiglipExtModel.from_vision_text_pretrained(vit, vit, projection_size=32)
    with pytest.raises(ValueError, match="BertModel takes input_ids, a vision tower must take pixel_values"):
        SiglipExtModel.from_vision_text_pretrained(bert, bert, projection_size=32)
    with pytest.raises(ValueError, match=r"text_config cannot be a .*vision_model"):
        SiglipExtModel.from_vision_text_pretrained(image_tower, image_tower)


def test_a_missing_shard_and_another_shape_are_errors(tmp_path):
    model = SiglipExtModel(make_config())
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(OSError, match=shards[1].name):
        SiglipExtModel.from_pretrained(tmp_path / "shards")
    with pytest.raises(OSError, match=shards[1].name):
        SiglipExtVisionModel.from_pretrained(tmp_path / "shards")
    model.save_pretrained(tmp_path / "whole")
    wider = make_config({"vocab_size": 120})
    with pytest.raises(ValueError, match=r"token_embedding\.weight is \(99, 32\) in the checkpoint and \(120, 32\)"):
        SiglipExtModel.from_pretrained(tmp_path / "whole", config=wider)
    anew = SiglipExtModel.from_pretrained(tmp_path / "whole", config=wider, ignore_mismatched_sizes=True)
    assert anew.get_input_embeddings().num_embeddings == 120


@pytest.mark.parametrize("load", [SiglipExtModel.from_pretrained, partial(load_whole, AutoModel.from_pretrained)])
def test_weights_that_were_cut_are_an_error_that_names_them(load, tmp_path):
    SiglipExtModel(make_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"weights of {tmp_path} are damaged .*: save or download them again"):
        load(tmp_path)


def test_a_new_classifier_on_a_trained_tower_is_meant(tmp_path, caplog):
    SiglipExtModel(make_config()).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = SiglipExtForImageClassification.from_pretrained(tmp_path, num_labels=5)
    assert model.classifier.out_features == 5
    assert "classifier" in caplog.text  # transformers' own table says that it is new


def test_a_folder_of_adapter_weights_brings_the_model_they_belong_to(tmp_path):
    SiglipExtModel(make_config()).save_pretrained(tmp_path / "base")
    base = SiglipExtModel.from_pretrained(tmp_path / "base")
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    batch = {"input_ids": torch.randint(99, (2, 8)), "pixel_values": torch.randn(2, 3, 32, 32)}
    found = SiglipExtModel.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(found(**batch).logits_per_image, tuned.eval()(**batch).logits_per_image)


def test_the_prefix_is_that_of_most_names_or_unknown():
    missing = {"encoder.a", "encoder.b", "head.c"}
    assert prefix_of(missing, {"m.v.encoder.a", "m.v.encoder.b", "lm_head.c"}) == "m.v."
    assert prefix_of(missing, {"one.encoder.a", "two.encoder.a"}) is None
    assert prefix_of(missing, {"lm.layers.0"}) is None
    assert prefix_of(set(), {"one.encoder.a"}) is None


def test_a_dual_model_within_nothing_else_needs_its_own_configuration(tmp_path):
    folder = save_inside(make_tower(), "llava", tmp_path)
    with pytest.raises(ValueError, match="has no weights for"):
        SiglipExtModel.from_pretrained(
            folder, config=SiglipExtConfig(text_config=TINY_TEXT, vision_config=TINY_VISION)
        )
