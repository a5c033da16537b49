"""The whole configuration space: what is valid builds, runs, saves and reloads; what is not raises at construction."""

import tempfile

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForImageClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtTextModel,
    SiglipExtVisionConfig,
    SiglipExtVisionModel,
    native_config,
)


# Of outputs: the order of a sum may depend on where in memory equal weights lie.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
TINY = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TINY, "vocab_size": 30, "max_position_embeddings": 6}

sizes = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([8, 12, 16]),
        "intermediate_size": st.integers(1, 20),
        "num_hidden_layers": st.integers(1, 2),
        "num_attention_heads": st.sampled_from([1, 2, 3, 4]),
    }
)
text_fields = st.fixed_dictionaries(
    {
        "pooling": st.sampled_from(["last", "first", "mean", "max", "map", "cls"]),
        "use_head": st.booleans(),
        "token_embedding_size": st.sampled_from([None, 4]),
        "projection_size": st.sampled_from([None, 12]),
    }
)
vision_fields = st.fixed_dictionaries(
    {
        "pooling": st.sampled_from(["map", "mean", "max", "first", "cls", "none"]),
        "pre_logits": st.booleans(),
        "projection_size": st.sampled_from([None, 12]),
        "position_embedding_type": st.sampled_from(["learned", "sincos2d"]),
        "naflex": st.booleans(),
        "image_size": st.sampled_from([None, 8, 11]),
        "num_patches": st.sampled_from([None, 9, 10]),
    }
)
pair_fields = st.fixed_dictionaries(
    {"loss_type": st.sampled_from(["sigmoid", "softmax"]), "logit_bias_init": st.sampled_from([-10.0, None])}
)


def valid(text: dict, vision: dict, pair: dict) -> bool:
    """What the documentation of the configurations allows, said a second time."""
    if any(tower["hidden_size"] % tower["num_attention_heads"] for tower in (text, vision)):
        return False
    if text["pooling"] == "cls" or (
        not text["use_head"] and text["projection_size"] not in (None, text["hidden_size"])
    ):
        return False
    if vision["naflex"]:
        learned = vision["position_embedding_type"] == "learned"
        right = vision["image_size"] is None and vision["num_patches"] != 10 and learned and vision["pooling"] != "cls"
    else:
        right = vision["num_patches"] is None
    if not right or vision["pooling"] == "none":
        return False
    if (text["projection_size"] or text["hidden_size"]) != (vision["projection_size"] or vision["hidden_size"]):
        return False
    return pair["loss_type"] == "softmax" or pair["logit_bias_init"] is not None


def inputs_for(config: SiglipExtConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(30, (3, 6), generator=generator)
    vision = config.vision_config
    if not vision.naflex:
        size = vision.image_size
        return {"input_ids": ids, "pixel_values": torch.randn(3, 3, size, size, generator=generator)}
    grids = torch.tensor([[3, 3], [2, 4], [1, 5]])
    patches = torch.randn(3, 10, 48, generator=generator)
    return {"input_ids": ids, "pixel_values": patches, "spatial_shapes": grids}


def check_life(config: SiglipExtConfig) -> None:
    """Builds, runs, learns in every parameter, saves, reloads, and gives the same output."""
    torch.manual_seed(0)
    model = SiglipExtModel(config).train()
    inputs = inputs_for(model.config)
    model(**inputs).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        expected = model.eval()(**inputs).logits_per_image
    assert torch.isfinite(expected).all()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again, report = SiglipExtModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits_per_image, expected, **ROUNDING)
    assert (native_config(again.config) is None) == (native_config(model.config) is None)


@given(text_sizes=sizes, text=text_fields, vision_sizes=sizes, vision=vision_fields, pair=pair_fields)
@settings(max_examples=60, deadline=None)  # `make fuzz` draws more
def test_valid_configurations_live_and_invalid_ones_raise(text_sizes, text, vision_sizes, vision, pair):
    text = {**text, **text_sizes, "vocab_size": 30, "max_position_embeddings": 6}
    vision = {**vision, **vision_sizes, "patch_size": 4}
    vision["image_size"] = vision["image_size"] if vision["naflex"] else vision["image_size"] or 8
    if not valid(text, vision, pair):
        with pytest.raises(ValueError, match=r"\w{3}"):
            SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=vision, **pair))
        return
    check_life(SiglipExtConfig(text_config=text, vision_config=vision, **pair))


@given(text_sizes=sizes, text=text_fields, vision_sizes=sizes, vision=vision_fields, pair=pair_fields)
@settings(max_examples=30, deadline=None)  # `make fuzz` draws more
def test_every_valid_configuration_lives(text_sizes, text, vision_sizes, vision, pair):
    """The test above meets few valid configurations; here every draw is mended into one."""
    text |= text_sizes | {"vocab_size": 30, "max_position_embeddings": 6, "num_attention_heads": 4, "hidden_size": 16}
    text |= {"use_head": True, "projection_size": 12, "pooling": text["pooling"].replace("cls", "map")}
    vision |= vision_sizes | {"patch_size": 4, "num_attention_heads": 4, "hidden_size": 16, "projection_size": 12}
    vision["pooling"] = vision["pooling"].replace("none", "map")
    if vision["naflex"]:
        vision |= {"image_size": None, "num_patches": 9, "position_embedding_type": "learned"}
        vision["pooling"] = vision["pooling"].replace("cls", "mean")
    else:
        vision |= {"image_size": vision["image_size"] or 8, "num_patches": None}
    pair["logit_bias_init"] = -10.0 if pair["loss_type"] == "sigmoid" else pair["logit_bias_init"]
    assume(valid(text, vision, pair))
    check_life(SiglipExtConfig(text_config=text, vision_config=vision, **pair))


FULL = {"text_config": TEXT, "vision_config": {**TINY, "image_size": 16, "patch_size": 4}}


@pytest.mark.parametrize("native", [True, False])
def test_a_tower_alone_comes_out_of_a_full_checkpoint(native, tmp_path):
    model = SiglipExtModel(SiglipExtConfig(**FULL)).eval()
    model.save_pretrained(tmp_path, native=native)
    inputs = inputs_for(model.config)
    for tower_class, kind, name in (
        (SiglipExtVisionModel, "vision_model", "pixel_values"),
        (SiglipExtTextModel, "text_model", "input_ids"),
    ):
        tower, report = tower_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        with torch.no_grad():
            found = tower.eval()(inputs[name]).pooler_output
            torch.testing.assert_close(found, getattr(model, kind)(inputs[name]).pooler_output, **ROUNDING)


@pytest.mark.parametrize("pooling", ["map", "cls", "none"])
def test_patch_features_by_layer_with_and_without_the_last_norm(pooling):
    tower = SiglipExtVisionModel(SiglipExtVisionConfig(**FULL["vision_config"], pooling=pooling)).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        outputs = tower(images, output_hidden_states=True)
        last = tower.get_patch_features(images)
        inner = tower.get_patch_features(images, layer=1, post_norm=False)
    patches = slice(1, None) if pooling == "cls" else slice(None)
    torch.testing.assert_close(last.features, outputs.last_hidden_state[:, patches], **ROUNDING)
    torch.testing.assert_close(inner.features, outputs.hidden_states[1][:, patches], **ROUNDING)
    assert last.grid.tolist() == [[4, 4], [4, 4]]
    assert last.features.shape[1] == 16
    assert last.mask is None
    with pytest.raises(IndexError, match="hidden states 0 to 2"):
        tower.get_patch_features(images, layer=3)


def test_patch_features_of_naflex_say_what_is_padding():
    tower = SiglipExtVisionModel(SiglipExtVisionConfig(**TINY, naflex=True, num_patches=9, patch_size=4)).eval()
    grids = torch.tensor([[3, 3], [1, 5]])
    found = tower.get_patch_features(torch.randn(2, 10, 48), spatial_shapes=grids)
    assert found.grid is grids
    assert found.mask.sum(1).tolist() == [9, 5]


LLM = {**TINY, "vocab_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 64}


@pytest.mark.parametrize(("layer", "pooling"), [(-1, "none"), (-2, "map")])
def test_the_tower_sees_for_a_tiny_llava(layer, pooling):
    vision = SiglipExtVisionConfig(**FULL["vision_config"], pooling=pooling)
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **LLM},
        image_token_index=39,
        vision_feature_select_strategy="full",
        vision_feature_layer=layer,
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config).eval()
    assert type(model.model.vision_tower) is SiglipExtVisionModel
    images = torch.randn(1, 3, 16, 16)
    ids = torch.tensor([[1, *[39] * 16, 2, 3]])
    features = model.model.vision_tower.get_patch_features(images, layer=layer, post_norm=False).features
    seen = model.model.get_image_features(images, return_dict=True).pooler_output
    torch.testing.assert_close(torch.cat(list(seen)).view(16, -1), model.model.multi_modal_projector(features)[0])
    output = model(input_ids=ids, pixel_values=images, labels=ids)
    output.loss.backward()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert not torch.equal(model(input_ids=ids, pixel_values=-images).logits, output.logits)


def test_the_tower_sees_for_a_tiny_paligemma():
    vision = SiglipExtVisionConfig(**FULL["vision_config"], pooling="none")
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config={"model_type": "gemma", **LLM, "head_dim": 8},
        image_token_index=39,
        projection_dim=16,
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    assert type(model.model.vision_tower) is SiglipExtVisionModel
    ids = torch.tensor([[*[39] * 16, 2, 3]])
    images = torch.randn(1, 3, 16, 16)
    first = model(input_ids=ids, pixel_values=images, token_type_ids=torch.zeros_like(ids)).logits
    second = model(input_ids=ids, pixel_values=-images, token_type_ids=torch.zeros_like(ids)).logits
    assert torch.isfinite(first).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("pooling", "native"), [("map", False), ("mean", True)])
def test_classifier_with_either_pooling_learns_and_reloads(pooling, native, tmp_path):
    torch.manual_seed(0)
    vision = {**FULL["vision_config"], "pooling": pooling}
    model = SiglipExtForImageClassification(SiglipExtConfig(text_config=TEXT, vision_config=vision, num_labels=3))
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    assert model.vision_model.embeddings.patch_embedding.weight.grad is not None
    model.eval().save_pretrained(tmp_path)
    assert (native_config(model.config) is not None) == native
    again = SiglipExtForImageClassification.from_pretrained(tmp_path).eval()
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(again(images).logits, expected, **ROUNDING)
        torch.testing.assert_close(plain(images).logits, expected, rtol=0, atol=1e-5)
