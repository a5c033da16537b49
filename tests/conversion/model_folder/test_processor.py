"""The processor that is written with a model cuts texts as the original did, in plain transformers."""

import json

import pytest
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    SiglipProcessor,
    pipeline,
)

from modeling_siglip_ext import apply_text_rules
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.errors import VerificationError
from modeling_siglip_ext.conversion.model_folder.processor import (
    check_tokenizer,
    fit_tokenizer,
    load_tokenizer,
    missing_tokenizer,
    write_processor,
)
from modeling_siglip_ext.conversion.released.catalogue import tokenizers
from support.tokenizers import c4_pieces


SENTENCES = ["a photo of a cat", "two dogs on the mat", "The Quick Brown Fox", "a red square, a blue circle!"] * 20
TEXTS = ["A photo of a CAT", "two dogs on the mat, and then two more dogs on another mat"]


@pytest.fixture(scope="session")
def spiece(tmp_path_factory):
    return c4_pieces((text.lower() for text in SENTENCES), tmp_path_factory.mktemp("spiece") / "c4.model")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """A tokenizer.json with Gemma's special tokens and no rules of SigLIP."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_v1_ids_are_those_of_sentencepiece(spiece, checkpoints, tmp_path):
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    out = tmp_path / "out"
    arguments = ["from-jax", source, str(out), "--tokenizer", str(spiece), "--text-rules", "v1"]
    assert main(arguments) == 0
    processor = AutoProcessor.from_pretrained(out)
    assert type(processor) is SiglipProcessor
    rows = processor(text=TEXTS, padding="max_length", truncation=True)["input_ids"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    for text, row in zip(TEXTS, rows):
        ids = [*pieces.encode(text.lower().replace(",", ""))[:7], 1]
        assert row == ids + [1] * (8 - len(ids))
    assert json.loads((out / "conversion_report.json").read_text())["tokenizer"]


@pytest.mark.parametrize("case", ["siglip1_mu16", "siglip2_naflex"])
def test_v2_ids_are_lower_cased_ended_and_padded_on_the_right(case, gemma, checkpoints, tmp_path):
    source = str(checkpoints / case / "checkpoint.npz")
    out = tmp_path / "out"
    assert main(["from-jax", source, str(out), "--tokenizer", str(gemma), "--text-rules", "v2"]) == 0
    processor = AutoProcessor.from_pretrained(out)
    assert type(processor) is SiglipProcessor  # Siglip2Processor would put 16, 256 and 64 in the place of its settings
    batch = processor(text=TEXTS)
    assert "attention_mask" not in batch
    plain = Tokenizer.from_file(str(gemma))
    for text, row in zip(TEXTS, batch["input_ids"]):
        ids = [*plain.encode(text.lower()).ids[:7], 1]
        assert row == ids + [0] * (8 - len(ids))


def test_a_tokenizer_class_with_rules_of_its_own_keeps_ours(gemma, tmp_path):
    """`Siglip2Tokenizer` pads on the left and rebuilds its rules when it is loaded."""
    from transformers import Siglip2Tokenizer

    data = json.loads(gemma.read_text())["model"]
    stock = Siglip2Tokenizer(vocab=data["vocab"], merges=[tuple(merge) for merge in data["merges"]])
    stock.save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "config.json").write_text('{"model_type": "siglip2"}')
    tokenizer = fit_tokenizer(load_tokenizer(tmp_path / "stock"), "v2", 8)
    tokenizer.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text('{"model_type": "siglip2"}')
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    row = again("A cat", padding="max_length", truncation=True)["input_ids"]
    assert row[-1] == 0
    assert row == again("a CAT", padding="max_length", truncation=True)["input_ids"]
    assert row[row.index(0) - 1] == 1


def test_bert_texts_are_cut_at_the_length_of_lit(checkpoints, tmp_path):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "photo",
        "of",
        "cat",
        "two",
        "dogs",
        "on",
        "the",
        "mat",
    ]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    source = str(checkpoints / "lit_bert" / "checkpoint.npz")
    options = ["--text-heads", "4", "--tokenizer", str(tmp_path / "bert"), "--text-rules", "bert"]
    assert main(["from-jax", source, str(tmp_path / "out"), *options]) == 0
    rows = AutoProcessor.from_pretrained(tmp_path / "out")(text=TEXTS, padding="max_length", truncation=True)
    assert [len(row) for row in rows["input_ids"]] == [16, 16]
    assert rows["input_ids"][0][:3] == [2, 5, 6]


def test_the_zero_shot_pipeline_needs_no_argument(gemma, checkpoints, tmp_path):
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    out = str(tmp_path / "out")
    options = ["--tokenizer", str(gemma), "--text-rules", "v2", "--text-length", "64"]  # the pipeline knows no other
    assert main(["from-jax", source, out, *options]) == 0
    classify = pipeline("zero-shot-image-classification", model=out)
    found = classify(Image.new("RGB", (100, 50), "red"), candidate_labels=["a cat", "two dogs"])
    assert {row["label"] for row in found} == {"a cat", "two dogs"}
    assert all(0 <= row["score"] <= 1 for row in found)


def test_image_settings_are_those_of_training(converted):
    fixed = json.loads((converted("siglip1_mu16") / "preprocessor_config.json").read_text())
    assert fixed["size"] == {"height": 64, "width": 64}
    assert fixed["resample"] == 2  # bilinear
    assert fixed["image_mean"] == fixed["image_std"] == [0.5, 0.5, 0.5]
    naflex = AutoImageProcessor.from_pretrained(converted("siglip2_naflex"))
    batch = naflex(images=[Image.new("RGB", (40, 160))], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 16, 768)
    assert torch.equal(batch["spatial_shapes"], torch.tensor([[8, 2]]))


def test_the_wrong_tokenizer_is_found_out(gemma, checkpoints, tmp_path, capsys):
    source = str(checkpoints / "siglip1_mu16" / "checkpoint.npz")
    assert main(["from-jax", source, str(tmp_path / "out"), "--tokenizer", str(gemma)]) == 2
    assert "--text_rules" in capsys.readouterr().err
    tokenizer = fit_tokenizer(load_tokenizer(gemma), "v2", 8)
    from modeling_siglip_ext import SiglipExtVisionConfig

    write_processor(tmp_path, SiglipExtVisionConfig(), tokenizer)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    check_tokenizer(tmp_path, "v2", 8, 90)
    with pytest.raises(VerificationError, match="beyond the model's vocabulary"):
        check_tokenizer(tmp_path, "v2", 8, 5)


def test_a_missing_tokenizer_is_named_with_what_to_fetch():
    text = missing_tokenizer(tokenizers()["gemma"])
    assert "hf download google/siglip2-base-patch16-224 tokenizer.json" in text
    assert "256,000 tokens" in text


def test_a_naflex_model_keeps_a_tokenizer_that_is_not_gemmas(checkpoints, tmp_path, capsys):
    """Beside a model in stock form transformers would read it as Gemma's."""
    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "cat", "two", "dogs", "on", "the", "mat"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = apply_text_rules(PreTrainedTokenizerFast(tokenizer_object=backend, **special), "v2", 8)
    tokenizer.save_pretrained(tmp_path / "own")
    source = str(checkpoints / "siglip2_naflex" / "checkpoint.npz")
    options = ["--tokenizer", str(tmp_path / "own"), "--text-rules", "v2"]
    found = main(["from-jax", source, str(tmp_path / "native"), *options, "--format", "native"])
    assert found == 2
    assert "--format native would lose this NaFlex model's tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "native").exists()
    assert main(["from-jax", source, str(tmp_path / "out"), *options]) == 0
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text())["format"] == "ext"
    rows = AutoProcessor.from_pretrained(tmp_path / "out")(text=TEXTS)["input_ids"]
    assert rows == tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
