"""The text rules of SigLIP ("v1") and SigLIP 2 ("v2"), put on a fast tokenizer and checked.

Both: lower-cased, no BOS, EOS after every text and kept when a text is truncated, padded on the right to one length.
They differ in the padding token: v1 pads with EOS, v2 with `<pad>` (reference: big_vision `pp/ops_text.py`).
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .texts import check_table, check_tokenizer


AnyTokenizer = TypeVar("AnyTokenizer", bound=PreTrainedTokenizerBase)
TEXT_RULES = ("v1", "v2")
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def apply_text_rules(tokenizer: AnyTokenizer, rules: str = "v2", max_length: int = 64) -> AnyTokenizer:
    """Make a fast tokenizer follow the rules, in place, and return it.

    Args:
        tokenizer: A tokenizer backed by the `tokenizers` library, with an EOS token (and for v2 a padding token).
        rules: "v1" or "v2".
        max_length: The text tower's `max_position_embeddings`.

    Raises:
        ValueError: Unknown rules, or the tokenizer lacks a token or a backend that the rules need.
    """
    if rules not in TEXT_RULES:
        raise ValueError(f"rules={rules!r} is unknown; choose one of {', '.join(TEXT_RULES)}")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no `tokenizers` backend; load the tokenizer.json form")
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no eos_token; SigLIP texts end with one")
    if rules == "v1":
        tokenizer.pad_token = tokenizer.eos_token
    elif tokenizer.pad_token is None:
        raise ValueError(
            "the tokenizer has no pad_token; SigLIP 2 texts are padded with one (`<pad>`, id 0, in Gemma)"
        )

    backend = tokenizer.backend_tokenizer
    if tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        lower = normalizers.Lowercase()
        backend.normalizer = normalizers.Sequence([lower, backend.normalizer]) if backend.normalizer else lower
    # the template is applied after truncation, which leaves room for it: that keeps EOS on long texts
    backend.post_processor = processors.TemplateProcessing(
        single="$A " + tokenizer.eos_token, special_tokens=[(tokenizer.eos_token, tokenizer.eos_token_id)]
    )
    tokenizer.padding_side = tokenizer.truncation_side = "right"

    set_text_length(tokenizer, max_length)
    without_mask(tokenizer)
    return tokenizer


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Put a tokenizer in the order in which a text tower is trained, so that it says the same after saving, in place.

    SigLIP towers attend to their padding: their tokenizers give no mask and pad to the tower's length. The others keep
    their masks. The configuration gets the tokenizer's padding token.

    Args:
        tokenizer: any of transformers, fast or not.
        config: of the text tower, ours, stock or from elsewhere.

    Raises:
        ValueError: no padding token, another one than the tower was trained with, or ids without a row in its table.
    """
    check_tokenizer(tokenizer, config)
    check_table(tokenizer, config, max(tokenizer.get_vocab().values()))
    config.pad_token_id = tokenizer.pad_token_id
    full_length = "siglip" in config.model_type
    set_text_length(tokenizer, config.max_position_embeddings if full_length else tokenizer.model_max_length)
    if full_length:
        without_mask(tokenizer)


def without_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer give token ids alone: stock towers would apply a mask and hide the padding of their training."""
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]


def set_text_length(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Let a tokenizer pad and truncate to `length`, in a processor and after saving and loading, too.

    A tokenizer.json keeps the truncation of the tokenizer's last call; loading turns that into a `max_length`, which
    processors prefer to `model_max_length`. What else is saved, stock processors take as their defaults. Beside a
    "siglip2" model it is loaded as Siglip2Tokenizer, whose default is to pad on the left, so the side is saved, too.
    """
    tokenizer.model_max_length = length
    tokenizer.init_kwargs.pop("max_length", None)
    tokenizer.init_kwargs |= {"padding": "max_length", "truncation": True}
    for side in ("padding_side", "truncation_side"):  # only what is in there is saved
        tokenizer.init_kwargs[side] = getattr(tokenizer, side)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000, max_length: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the v2 rules, trained on captions (for models trained from scratch).

    Example:

    ```python
    >>> from modeling_siglip_ext import train_tokenizer
    >>> tokenizer = train_tokenizer(["a red square", "a blue circle"], vocab_size=300, max_length=8)
    >>> tokenizer.decode(tokenizer("A red circle")["input_ids"])
    ' a red circle</s>'

    ```"""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # with the space a word is the same token at the start of a text and inside it
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
    return apply_text_rules(fast, "v2", max_length)
