"""Towers from elsewhere: LiT-like models of ViT, DINOv2, ConvNeXt, CLIP, BERT, DistilBERT, GPT-2 and SigLIP towers."""

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    T5Config,
    ViTConfig,
    ViTModel,
)

from modeling_siglip_ext import SiglipExtConfig, SiglipExtForImageClassification, SiglipExtModel, native_config
from support.models import TINY


IMAGE = {"image_size": 32, "patch_size": 8}
CLIP = CLIPConfig(text_config={**TINY, "vocab_size": 60}, vision_config={**TINY, **IMAGE})
VISION = {
    "vit": lambda: ViTModel(ViTConfig(**TINY, **IMAGE)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY, **IMAGE)),
    "clip": lambda: CLIPModel(CLIP),
    "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TINY, vision_config={**TINY, **IMAGE})),
}
TEXT = {
    "bert": lambda: BertModel(BertConfig(**{**TINY, "hidden_size": 24}, vocab_size=60)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(dim=24, hidden_dim=30, n_layers=2, n_heads=2, vocab_size=60)
    ),
    "gpt2": lambda: GPT2Model(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=60, pad_token_id=0)),
    "clip": lambda: CLIPModel(CLIP),
}


def token_ids(length: int = 9) -> torch.Tensor:
    ids = torch.randint(1, 60, (3, length), generator=torch.Generator().manual_seed(0))
    ids[1, 5:] = 0
    return ids


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("vision", "text"), [("vit", "bert"), ("dinov2", "distilbert"), ("convnext", "gpt2")])
def test_towers_from_folders_train_save_and_reload(vision, text, tmp_path):
    torch.manual_seed(0)
    VISION[vision]().save_pretrained(tmp_path / "vision")
    TEXT[text]().save_pretrained(tmp_path / "text")
    model = SiglipExtModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    for kind, tower in (("vision", model.vision_model), ("text", model.text_model)):
        source = AutoModel.from_pretrained(tmp_path / kind).state_dict()
        for name, tensor in tower.state_dict().items():
            assert torch.equal(tensor, source[name]), name
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {
        "vision_model",
        "text_model",
        "text_adapter",
        "logit_scale",
        "logit_bias",
    }
    model.train()
    model(token_ids()[:2], images()).loss.backward()
    if vision != "dinov2":  # its mask token is for another task
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        expected = model.eval()(token_ids(), images()).logits_per_image
    assert native_config(model.config) is None
    model.save_pretrained(tmp_path / "pair")
    again, report = SiglipExtModel.from_pretrained(tmp_path / "pair", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(again.eval()(token_ids(), images()).logits_per_image, expected)


def test_initial_values_of_the_new_parts_are_ours(tmp_path):
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), TEXT["bert"]())
    assert model.logit_scale.item() == pytest.approx(2.302585, abs=1e-5)
    assert model.logit_bias.item() == -10
    assert model.text_adapter.projection.weight.shape == (32, 24)
    assert model.text_adapter.projection.weight.std().item() == pytest.approx(24**-0.5, rel=0.2)


def test_the_pooled_vector_is_the_towers_own_class_token():
    vit, bert = VISION["vit"]().eval(), TEXT["bert"]().eval()
    model = SiglipExtModel.from_vision_text_pretrained(vit, bert).eval()
    mask = (token_ids() != 0).long()
    with torch.no_grad():
        found = model.get_image_features(images()).pooler_output
        assert torch.equal(found, vit(images()).last_hidden_state[:, 0])
        text = bert(token_ids(), attention_mask=mask).last_hidden_state[:, 0]
        expected = model.text_adapter.projection(text)
        torch.testing.assert_close(model.get_text_features(token_ids()).pooler_output, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max", "pooler"])
def test_padding_of_a_masked_text_tower_changes_nothing(pooling):
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), TEXT["bert"](), text_pooling=pooling).eval()
    short = token_ids()[1:2, :5]
    padded = token_ids()[1:2]
    with torch.no_grad():
        expected = model.get_text_features(short).pooler_output
        torch.testing.assert_close(model.get_text_features(padded).pooler_output, expected, rtol=0, atol=1e-5)
        given = model.get_text_features(padded, attention_mask=(padded != 0).long()).pooler_output
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_what_a_bert_tokenizer_gives_is_taken():
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), TEXT["bert"]()).eval()
    ids = token_ids()
    inputs = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": (ids != 0).long()}
    expected = model(ids, images()).logits_per_image
    torch.testing.assert_close(model(**inputs, pixel_values=images()).logits_per_image, expected)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("vision", "text"), [("siglip", "bert"), ("clip", "clip")])
def test_towers_are_taken_out_of_full_models(vision, text, live, tmp_path):
    sources = VISION[vision]().eval(), TEXT[text]().eval()
    sources[0].save_pretrained(tmp_path / "vision")
    sources[1].save_pretrained(tmp_path / "text")
    fields = {} if vision == "siglip" else {"vision_pooling": "pooler", "text_pooling": "pooler"}
    if not live:
        sources = str(tmp_path / "vision"), str(tmp_path / "text")
    model = SiglipExtModel.from_vision_text_pretrained(
        *sources, loss_type="softmax", logit_bias_init=None, **fields
    ).eval()
    whole = AutoModel.from_pretrained(tmp_path / "vision").eval()
    with torch.no_grad():
        expected = whole.vision_model(images()).pooler_output
        torch.testing.assert_close(model.get_image_features(images()).pooler_output, expected, rtol=0, atol=1e-5)
        assert torch.isfinite(model(token_ids(), images()).logits_per_image).all()


def test_one_width_for_both_embeddings():
    model = SiglipExtModel.from_vision_text_pretrained(VISION["convnext"](), TEXT["bert"](), projection_size=10)
    output = model.eval()(token_ids(), images())
    assert output.image_embeds.shape == (2, 10)
    assert output.text_embeds.shape == (3, 10)


def test_hidden_states_gradient_checkpointing_and_a_frozen_tower():
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), TEXT["bert"]())
    model.vision_model.requires_grad_(False)
    model.gradient_checkpointing_enable()
    output = model.train()(token_ids()[:2], images(), output_hidden_states=True)
    assert len(output.text_model_output.hidden_states) == 3
    output.loss.backward()
    assert all(p.grad is None for p in model.vision_model.parameters())
    assert model.text_model.embeddings.word_embeddings.weight.grad is not None


def test_device_map_places_both_towers(tmp_path):
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), TEXT["bert"]()).eval()
    expected = model(token_ids(), images()).logits_per_image.detach()
    model.save_pretrained(tmp_path)
    placed = SiglipExtModel.from_pretrained(tmp_path, device_map="auto").eval()
    with torch.no_grad():
        found = placed(token_ids().to(placed.device), images().to(placed.device)).logits_per_image
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


def test_a_live_model_keeps_its_attention_backend():
    vit = ViTModel._from_config(ViTConfig(**TINY, **IMAGE), attn_implementation="eager")
    SiglipExtModel.from_vision_text_pretrained(vit, TEXT["bert"]())
    assert vit.config._attn_implementation == "eager"


FOREIGN_TEXT = {"model_type": "bert", **TINY, "vocab_size": 60}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiglipExtModel.from_vision_text_pretrained(TEXT["bert"](), TEXT["bert"]()), "must take pixel_values"),
        (lambda: SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), VISION["vit"]()), "must take input_ids"),
        (
            lambda: SiglipExtModel.from_vision_text_pretrained(
                VISION["vit"](), TEXT["distilbert"](), text_pooling="pooler"
            ),
            "DistilBertModel has no pooled output; set text_pooling",
        ),
        (lambda: SiglipExtConfig(text_config=FOREIGN_TEXT, text_pooling="cls"), "text_pooling='cls' is unknown"),
        (lambda: SiglipExtConfig(text_pooling="first"), "set pooling and projection_size in text_config"),
        (lambda: SiglipExtConfig(vision_projection_size=8), "set pooling and projection_size in vision_config"),
        (lambda: SiglipExtConfig(text_config=T5Config()), "has a decoder"),
        (lambda: SiglipExtModel(SiglipExtConfig(text_config=FOREIGN_TEXT)), "768 dimensions, the text embedding 32"),
        (
            lambda: SiglipExtForImageClassification(SiglipExtConfig(vision_config=ResNetConfig())),
            "its own image classification class",
        ),
    ],
)
def test_what_cannot_be_a_tower_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_long_texts_and_naflex_inputs_are_refused():
    bert = BertModel(BertConfig(**TINY, vocab_size=60, max_position_embeddings=8))
    model = SiglipExtModel.from_vision_text_pretrained(VISION["vit"](), bert).eval()
    with pytest.raises(ValueError, match=r"9 tokens.*at most 8.*max_length=8"):
        model(token_ids(), images())
    with pytest.raises(ValueError, match="NaFlex"):
        model.get_image_features(images(), spatial_shapes=torch.tensor([[4, 4]] * 2))


def test_a_tower_that_leaves_out_its_pooled_output_is_noticed():
    vit = ViTModel(ViTConfig(**TINY, **IMAGE), add_pooling_layer=False)
    model = SiglipExtModel.from_vision_text_pretrained(vit, TEXT["bert"](), vision_pooling="pooler")
    with pytest.raises(ValueError, match="gave no pooled output; set vision_pooling"):
        model.eval()(token_ids(), images())
