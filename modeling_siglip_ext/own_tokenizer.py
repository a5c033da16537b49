"""Tokenizers that transformers would take for Gemma's.

Whatever tokenizer lies beside a model of the type "siglip2", NaFlex in stock form, AutoTokenizer reads as
`Siglip2Tokenizer`, which keeps vocabulary, merges and post-processor and makes normalizer and pre-tokenizer anew. A
tokenizer of one's own then gives other tokens, without a message; such a model is saved in our form.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


SIGLIP2_TOKENIZERS = ("Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
SIGLIP2_NORMALIZER = [
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]
SIGLIP2_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
SIGLIP2_BPE = {
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "ignore_merges": False,
}


def siglip2_reads(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer gives the same tokens when transformers reads it beside a "siglip2" model.

    Args:
        tokenizer: The content of its `tokenizer.json`.
    """
    model = tokenizer["model"]
    if model["type"] != "BPE" or model["unk_token"] is None:
        return False
    has_bytes = any(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return (
        (model["byte_fallback"] or not has_bytes)
        and all((model.get(key, value) or None) == (value or None) for key, value in SIGLIP2_BPE.items())
        and list(steps(tokenizer["normalizer"])) == SIGLIP2_NORMALIZER
        # where the normalizer leaves no space, nothing is split
        and tokenizer["pre_tokenizer"] in (None, SIGLIP2_SPLIT)
    )


def steps(normalizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The normalizers of a sequence of sequences."""
    if normalizer is None:
        return
    if normalizer["type"] != "Sequence":
        yield normalizer
        return
    for part in normalizer["normalizers"]:
        yield from steps(part)


def reads_texts(config: Mapping[str, Any] | None) -> bool:
    """Whether it is the configuration of a NaFlex model in stock form that has texts; an image classifier has none."""
    if config is None or config.get("model_type") != "siglip2":
        return False
    return "Siglip2ForImageClassification" not in (config.get("architectures") or ())


def has_own_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds a tokenizer that transformers would read wrongly beside a "siglip2" model."""
    tokenizer, settings = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
    if not settings.is_file():
        return False
    if json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") in SIGLIP2_TOKENIZERS:
        return False
    return not (tokenizer.is_file() and siglip2_reads(json.loads(tokenizer.read_text(encoding="utf-8"))))
