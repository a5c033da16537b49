"""NaFlex models with a tokenizer that transformers would take for Gemma's: the tokens are those of training."""

import logging

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Siglip2ForImageClassification,
    Siglip2Tokenizer,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    apply_text_rules,
    encode_texts,
    native_config,
    train_tokenizer,
)
from modeling_siglip_ext.own_tokenizer import has_own_tokenizer
from support.models import TINY, TINY_NAFLEX
from support.tokenizers import gemma_like


TEXTS = ["a red square", "Two  BLUE circles, naïve café", "你好 мир 🙂", "don't\tstop\nnow ", "a" * 80, ""]


def word_level() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", "a", "red", "square", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return apply_text_rules(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), "v2", 16)


OWN = {"trained": lambda: train_tokenizer(TEXTS, 300, 16), "words": word_level}
GEMMAS = {"gemma": lambda: gemma_like(TEXTS), "gemma with bytes": lambda: gemma_like(TEXTS, byte_fallback=True)}


def build(tokenizer) -> tuple[SiglipExtModel, SiglipExtProcessor]:
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    model = SiglipExtModel(SiglipExtConfig(vision_config=TINY_NAFLEX, text_config=text)).eval()
    images = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    return model, SiglipExtProcessor(images, tokenizer)


@pytest.mark.parametrize("first", ["model", "processor"])
@pytest.mark.parametrize("kind", [*OWN, *GEMMAS])
def test_what_is_saved_gives_the_tokens_of_training(kind, first, tmp_path, caplog):
    tokenizer = {**OWN, **GEMMAS}[kind]()
    model, processor = build(tokenizer)
    parts = [model, processor] if first == "model" else [processor, model]
    with caplog.at_level(logging.WARNING):
        for part in parts:
            part.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.model_type == ("siglip_ext" if kind in OWN else "siglip2")
    assert ("would read its tokenizer as Gemma's" in caplog.text) == (kind in OWN and first == "model")
    expected = tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
    auto = AutoProcessor.from_pretrained(tmp_path)
    assert auto(text=TEXTS)["input_ids"] == expected
    found = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding="max_length", truncation=True)["input_ids"]
    assert found == expected
    vectors = encode_texts(model, processor, TEXTS)
    np.testing.assert_allclose(encode_texts(loaded, auto, TEXTS), vectors, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", OWN)
def test_a_model_keeps_that_form_beside_stock_processors(kind, tmp_path):
    """As a Trainer saves what was loaded: the model, then the processor that AutoProcessor made."""
    model, processor = build(OWN[kind]())
    model.save_pretrained(tmp_path / "one")
    processor.save_pretrained(tmp_path / "one")
    loaded, auto = SiglipExtModel.from_pretrained(tmp_path / "one"), AutoProcessor.from_pretrained(tmp_path / "one")
    assert loaded.config.own_tokenizer
    assert native_config(loaded.config) is None
    loaded.save_pretrained(tmp_path / "two")
    auto.save_pretrained(tmp_path / "two")
    again = AutoProcessor.from_pretrained(tmp_path / "two")
    assert again(text=TEXTS)["input_ids"] == processor(text=TEXTS)["input_ids"]
    with pytest.raises(ValueError, match="would lose its tokenizer"):
        loaded.save_pretrained(tmp_path / "three", native=True)


def test_stock_form_cannot_be_demanded_beside_such_a_tokenizer(tmp_path):
    model, processor = build(OWN["trained"]())
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would lose its tokenizer"):
        model.save_pretrained(tmp_path, native=True)
    assert native_config(model.config) is None
    model.save_pretrained(tmp_path / "elsewhere", native=False)


def test_what_counts_as_gemmas_is_what_the_stock_class_reads_alike(tmp_path):
    for place, tokenizer in enumerate(
        [*(make() for make in (*OWN.values(), *GEMMAS.values())), gemma_like(TEXTS, rules=False)]
    ):
        folder = tmp_path / str(place)
        tokenizer.save_pretrained(folder)
        try:
            theirs = Siglip2Tokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
        except Exception:  # the tokenizers library raises no class of its own, here of a vocabulary without <unk>
            theirs = None
        assert has_own_tokenizer(folder) == (theirs != tokenizer(TEXTS)["input_ids"]), place
    assert not has_own_tokenizer(tmp_path)
    Siglip2Tokenizer.from_pretrained(tmp_path / "2").save_pretrained(tmp_path / "theirs")
    assert not has_own_tokenizer(tmp_path / "theirs")


@pytest.mark.parametrize("first", ["model", "processor"])
def test_a_classifier_has_no_texts_and_stays_in_stock_form(first, tmp_path):
    _, processor = build(OWN["trained"]())
    config = SiglipExtConfig(vision_config={**TINY_NAFLEX, "pooling": "mean"}, num_labels=3)
    parts = [SiglipExtForImageClassification(config), processor]
    for part in parts if first == "model" else parts[::-1]:
        part.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is Siglip2ForImageClassification
