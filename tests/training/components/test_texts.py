"""What is saved gives what was trained: any tokenizer, all ways of saving and of loading, ours and stock classes."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    ZeroShotImageClassificationPipeline,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from support.models import TINY
from support.tokenizers import KINDS, WORDS, gpt2, sentence_pieces


TEXTS = ["A Photo of a red square, don't!", "two green columns", WORDS[-1] * 9]
LENGTH = 64  # that of the stock pipeline


def build(tokenizer: PreTrainedTokenizerBase, kind: str = "ours", **text) -> torch.nn.Module:
    """A model whose text tower fits the tokenizer in nothing but its size."""
    torch.manual_seed(0)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    fields = {
        "text_config": {**TINY, "vocab_size": vocabulary, "max_position_embeddings": LENGTH, **text},
        "vision_config": {**TINY, "image_size": 16, "patch_size": 4},
    }
    model = SiglipModel(SiglipConfig(**fields)) if kind == "stock" else SiglipExtModel(SiglipExtConfig(**fields))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.0)
    return model


@pytest.fixture
def train(arguments, rows):
    def run(model, processor, **changes) -> SiglipExtTrainer:
        trainer = SiglipExtTrainer(
            model=model,
            args=arguments(**{"max_steps": 1, "save_strategy": "steps", "save_steps": 1, **changes}),
            train_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
            data_collator=ImageTextCollator(processor, max_length=model.config.text_config.max_position_embeddings),
            processing_class=processor,
        )
        trainer.train()
        return trainer

    return run


def trained_vectors(trainer: SiglipExtTrainer) -> torch.Tensor:
    """Of texts as training sees them: what the collator makes of them, in the model in memory."""
    image = np.zeros((16, 16, 3), np.uint8)
    batch = trainer.data_collator([{"image": image, "caption": text} for text in TEXTS])
    with torch.no_grad():
        return trainer.model.eval()(**{**batch, "return_loss": False}).text_embeds


def by_auto_classes(folder: Path, **settings) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS, padding="max_length", truncation=True, return_tensors="pt", **settings)
    with torch.no_grad():
        return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


def by_sentence_transformers(folder: Path) -> torch.Tensor:
    library = pytest.importorskip("sentence_transformers")
    return torch.from_numpy(library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def by_us(folder: Path) -> torch.Tensor:
    return encode_texts(
        SiglipExtModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder), TEXTS, return_tensors="pt"
    )


def scores_of_the_stock_pipeline(folder: Path, image) -> list[float]:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    classify = ZeroShotImageClassificationPipeline(
        model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor, device="cpu"
    )
    found = {answer["label"]: answer["score"] for answer in classify(image, TEXTS, hypothesis_template="{}")}
    return [found[text] for text in TEXTS]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    "kind",
    [
        *("masked", "on_the_left", "gpt2", "slow", "sentencepiece"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("ours", "added", "bert", "cased", "limits_of_its_own")
        ),
    ],
)
def test_any_tokenizer_any_way(kind, train, rows, tmp_path):
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
        tokenizer = sentence_pieces(tmp_path)
    else:
        tokenizer = KINDS[kind]()
    stock = kind in ("bert", "on_the_left", "sentencepiece")
    images = SiglipExtImageProcessor(size={"height": 16, "width": 16})
    processor = (SiglipProcessor if stock else SiglipExtProcessor)(images, tokenizer)
    trainer = train(build(tokenizer, "stock" if stock else "ours"), processor)
    expected = trained_vectors(trainer)

    folders = [tmp_path / "saved", Path(trainer.args.output_dir) / "checkpoint-1", tmp_path / "by_hand"]
    trainer.save_model(str(folders[0]))
    trainer.model.save_pretrained(folders[2])
    processor.save_pretrained(folders[2])
    for folder in folders:
        assert_equal(by_auto_classes(folder), expected)
        assert_equal(by_auto_classes(folder, max_length=LENGTH), expected)
    assert_equal(by_sentence_transformers(folders[0]), expected)
    assert_equal(by_us(folders[0]), expected)
    pixels = processor(images=[rows[0]["image"]], return_tensors="pt")
    with torch.no_grad():
        image = F.normalize(trainer.model.get_image_features(**pixels).pooler_output, dim=-1)
        scale, bias = trainer.model.logit_scale.exp(), trainer.model.logit_bias
        wanted = (image @ expected.T * scale + bias).sigmoid()[0].tolist()
    assert scores_of_the_stock_pipeline(folders[0], rows[0]["image"]) == pytest.approx(wanted, abs=1e-6)


def test_without_the_trainer(tmp_path):
    """A processor of ours gives no mask, and so it is saved, whatever its tokenizer."""
    tokenizer = KINDS["masked"]()
    tokenizer.model_max_length = LENGTH
    processor = SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    model = build(tokenizer).eval()
    model.save_pretrained(tmp_path)
    stock = SiglipProcessor(processor.image_processor, tokenizer)
    assert processor.save_pretrained(tmp_path / "again") == stock.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path)
    assert "attention_mask" in tokenizer("a")
    with torch.no_grad():
        inputs = processor(text=TEXTS, return_tensors="pt")
        assert_equal(by_auto_classes(tmp_path), F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1))


def test_what_does_not_fit_is_refused(train, our_model, processor, arguments, rows):
    def refused(message: str, tokenizer, **text) -> None:
        own = SiglipExtProcessor(processor.image_processor, tokenizer)
        with pytest.raises(ValueError, match=message):
            train(build(KINDS["ours"](), **text), own)

    refused("no padding token", gpt2(padded=False))
    tokenizer = KINDS["ours"]()
    refused(r"'<mydog>' has the id \d+, and the text tower's table \d+ rows", KINDS["added"]())
    tokenizer.pad_token = "</s>"
    refused(r"pads with '</s>', id 1, and the text tower was made for pad_token_id=0", tokenizer, pad_token_id=0)
    with pytest.raises(ValueError, match=r"pads texts to 8 tokens, and the text tower takes 64"):
        SiglipExtTrainer(
            model=build(KINDS["ours"](), "stock"),
            args=arguments(),
            data_collator=ImageTextCollator(processor, max_length=8),
        )


def test_encoding_says_what_does_not_fit():
    tokenizer, model = KINDS["added"](), build(KINDS["ours"](), pad_token_id=0)
    assert encode_texts(model, tokenizer, ["a red square"]).shape == (1, 32)
    with pytest.raises(ValueError, match="'<mydog>' has the id"):
        encode_texts(model, tokenizer, ["a <mydog>"])
    with pytest.raises(ValueError, match="no padding token"):
        encode_texts(model, gpt2(padded=False), ["a"])
    tokenizer.pad_token = "</s>"
    with pytest.raises(ValueError, match="made for pad_token_id=0"):
        encode_texts(model, tokenizer, ["a"])
    model.config.text_config.pad_token_id = 1  # what SigLIP 2's configurations say, whose tokenizer pads with 0
    assert encode_texts(model, KINDS["ours"](), ["a"]).shape == (1, 32)


def test_a_class_that_forgets_its_rules_is_refused(train, processor):
    class Shouting(type(processor.tokenizer)):
        def __call__(self, text, *args, **kwargs):
            return super().__call__([one.upper()[::-1] for one in text], *args, **kwargs)

    tokenizer = KINDS["ours"]()
    tokenizer.__class__ = Shouting
    with pytest.raises(ValueError, match="gives other tokens for 'A Photo"):
        train(build(tokenizer), SiglipExtProcessor(processor.image_processor, tokenizer))


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_batches_of_ones_own(kind, arguments, rows):
    """A mask that a tokenizer goes on giving, and texts of another length, are refused at the first batch."""
    tokenizer = KINDS["masked"]()
    images = SiglipExtImageProcessor(size={"height": 16, "width": 16})

    def run(**settings) -> None:
        def collate(examples: list[dict]) -> dict:
            texts = tokenizer([example["caption"] for example in examples], return_tensors="pt", **settings)
            pixels = images([example["image"] for example in examples], return_tensors="pt")
            return {**texts, **pixels}

        SiglipExtTrainer(
            model=build(tokenizer, kind), args=arguments(max_steps=1), train_dataset=rows, data_collator=collate
        ).train()

    with pytest.raises(ValueError, match="the batch has texts of 9 tokens"):
        run(padding="max_length", max_length=9)
    with pytest.raises(ValueError, match="an attention_mask, without which"):
        run(padding="max_length", max_length=LENGTH)
    run(padding="max_length", max_length=LENGTH, return_attention_mask=False)


def test_a_text_length_that_the_stock_pipeline_does_not_know_is_said(train, processor, caplog):
    tokenizer = train_tokenizer(WORDS, vocab_size=300, max_length=16)
    with caplog.at_level(logging.WARNING):
        train(build(tokenizer, max_position_embeddings=16), SiglipExtProcessor(processor.image_processor, tokenizer))
    assert "takes 16 tokens, and the zero-shot pipeline of transformers pads to 64" in caplog.text
