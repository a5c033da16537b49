"""Configurations: contradictions raise when they are made, and stock dicts translate there and back."""

import pytest
from transformers import AutoConfig, Siglip2Config, SiglipConfig, SiglipVisionConfig

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtTextConfig,
    SiglipExtVisionConfig,
    native_config,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiglipExtVisionConfig(num_attention_heads=7), r"hidden_size=768.*num_attention_heads=7"),
        (lambda: SiglipExtTextConfig(num_attention_heads=7), r"hidden_size=768.*num_attention_heads=7"),
        (lambda: SiglipExtVisionConfig(hidden_size=0, num_attention_heads=0), r"hidden_size=0 must be at least 1"),
        (lambda: SiglipExtTextConfig(num_attention_heads=0), r"num_attention_heads=0 must be at least 1"),
        (lambda: SiglipExtVisionConfig(image_size=0, patch_size=0), r"patch_size=0 must be at least 1"),
        (lambda: SiglipExtVisionConfig(naflex=True, num_patches=0), r"num_patches=0 must be at least 1"),
        (lambda: SiglipExtTextConfig(max_position_embeddings=-1), r"max_position_embeddings=-1 must be at least 1"),
        (lambda: SiglipExtVisionConfig(pooling="avg"), r"image pooling='avg'.*map, mean"),
        (lambda: SiglipExtTextConfig(pooling="cls"), r"text pooling='cls'.*last, first"),
        (lambda: SiglipExtConfig(loss_type="hinge"), r"loss_type='hinge'.*sigmoid, softmax"),
        (lambda: SiglipExtConfig(logit_bias_init=None), r"sigmoid loss needs a bias"),
        (lambda: SiglipExtVisionConfig(naflex=True, image_size=224), r"leave image_size out"),
        (lambda: SiglipExtVisionConfig(naflex=True, num_patches=200), r"num_patches=200 must be a square"),
        (lambda: SiglipExtVisionConfig(num_patches=256), r"belongs to naflex=True"),
        (lambda: SiglipExtVisionConfig(image_size=8), r"image_size=8 is smaller than patch_size=16"),
        (lambda: SiglipExtTextConfig(use_head=False, projection_size=10), r"projection_size=10 needs use_head=True"),
        (lambda: SiglipExtConfig(text_config={"model_type": "siglip_vision_model"}), r"text_config cannot be a"),
    ],
)
def test_contradictions_name_the_field_and_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_towers_of_different_embedding_sizes_are_refused():
    config = SiglipExtConfig(text_config={"projection_size": 512})
    with pytest.raises(ValueError, match=r"768 dimensions.*512.*projection_size"):
        SiglipExtModel(config)


def test_a_wrong_type_is_refused():
    with pytest.raises(Exception, match="hidden_size"):
        SiglipExtVisionConfig(hidden_size="wide")


@pytest.mark.parametrize("stock_class", [SiglipConfig, Siglip2Config])
def test_stock_to_ours_and_back_is_the_identity(stock_class, tmp_path):
    stock = stock_class(vision_config={"hidden_size": 96, "patch_size": 8}, text_config={"vocab_size": 123})
    stock.save_pretrained(tmp_path / "stock")
    ours = SiglipExtConfig.from_pretrained(tmp_path / "stock")
    assert ours.vision_config.hidden_size == 96
    assert ours.vision_config.naflex == (stock_class is Siglip2Config)
    assert native_config(ours).to_dict() == stock_class.from_pretrained(tmp_path / "stock").to_dict()


def test_a_stock_tower_without_head_keeps_that():
    ours = SiglipExtConfig(vision_config=SiglipVisionConfig(vision_use_head=False)).vision_config
    assert ours.pooling == "none"
    assert native_config(ours).vision_use_head is False


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "softmax"},
        {"vision_config": {"pooling": "mean"}},
        {"vision_config": {"pooling": "cls"}},
        {"vision_config": {"pre_logits": True}},
        {"vision_config": {"projection_size": 768}},
        {"vision_config": {"position_embedding_type": "sincos2d"}},
        {"text_config": {"pooling": "first"}},
        {"text_config": {"use_head": False}},
        {"text_config": {"token_embedding_size": 96}},
        {"text_config": {"model_type": "bert"}},
    ],
)
def test_what_stock_cannot_express_is_saved_in_our_form(changes, tmp_path):
    config = SiglipExtConfig(**changes)
    assert native_config(config) is None
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is SiglipExtConfig
    assert again.to_dict() == SiglipExtConfig(**changes).to_dict() | {
        key: again.to_dict()[key]
        for key in ("transformers_version", "_name_or_path", "auto_map")
        if key in again.to_dict()
    }
    with pytest.raises(ValueError, match="native=True"):
        config.save_pretrained(tmp_path, native=True)


def test_attention_backend_reaches_both_towers():
    config = SiglipExtConfig()
    config._attn_implementation = "eager"
    assert config.text_config._attn_implementation == config.vision_config._attn_implementation == "eager"
