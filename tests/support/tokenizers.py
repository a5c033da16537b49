"""Tokenizers of all kinds that people bring: with masks, cases, sides and lengths of their own, fast and slow."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, ByT5Tokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_siglip_ext import apply_text_rules, train_tokenizer


WORDS = ["a photo of a red square", "A Blue bar", "two green columns", "the white frame in red"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_pieces(lowercase: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def masked() -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=word_pieces(), **NAMES)


def bert(**settings) -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab=word_pieces(settings.get("do_lower_case", True)).get_vocab(), **settings)


def limits_of_its_own() -> PreTrainedTokenizerBase:
    backend = word_pieces()
    backend.enable_truncation(5, direction="left")
    backend.enable_padding(length=7, pad_id=0, pad_token="[PAD]")
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=9, **NAMES)


def on_the_left() -> PreTrainedTokenizerBase:
    tokenizer = masked()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return tokenizer


def gpt2(padded: bool = True) -> PreTrainedTokenizerBase:
    bytes_of = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*bytes_of, "<|endoftext|>"])}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=[])
    if padded:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def added() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(WORDS, vocab_size=300, max_length=64)
    tokenizer.add_tokens(["<mydog>"])
    return tokenizer


def gemma_like(
    texts: list[str], length: int = 16, byte_fallback: bool = False, rules: bool = True
) -> PreTrainedTokenizerFast:
    """Of the kind that transformers makes of any tokenizer beside a "siglip2" model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)]
    tokenizer.train_from_iterator(texts * 5, trainers.BpeTrainer(vocab_size=len(special) + 60, special_tokens=special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    return apply_text_rules(fast, "v2", length) if rules else fast


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "ours": lambda: train_tokenizer(WORDS, vocab_size=300, max_length=64),
    "added": added,
    "masked": masked,
    "bert": bert,
    "cased": lambda: bert(do_lower_case=False),
    "limits_of_its_own": limits_of_its_own,
    "on_the_left": on_the_left,
    "gpt2": gpt2,
    "slow": ByT5Tokenizer,
}


def train_pieces(texts: Iterable[str], model: Path, **settings) -> Path:
    """A SentencePiece model of as many pieces as the texts have, at most; needs the library sentencepiece."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(model.with_suffix("")),
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model


def c4_pieces(texts: Iterable[str], model: Path) -> Path:
    """With the ids of c4_en: padding 0, end 1, unknown 2."""
    return train_pieces(texts, model, vocab_size=60, pad_id=0)


def sentence_pieces(folder: Path) -> PreTrainedTokenizerBase:
    """The slow tokenizer of the first SigLIP, with a small vocabulary."""
    from transformers import SiglipTokenizer

    settings = {"vocab_size": 40, "pad_id": -1, "control_symbols": ["<first>"]}
    model = train_pieces((text.lower() for text in WORDS * 5), folder / "spiece.model", **settings)
    return SiglipTokenizer(vocab_file=str(model))
