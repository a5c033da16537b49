"""The tokenizer of a model for open_clip: its files beside the weights, and the settings by which they are found.

`get_tokenizer("local-dir:FOLDER")` takes the files of the folder where `hf_tokenizer_name` says anything at all, and
CLIP's own tokenizer, whatever the vocabulary, where it says nothing. `hf-hub:` takes those of the repository that it
names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_siglip_ext import SiglipExtTextConfig

from ..containers.damage import read_mapping
from ..errors import CheckpointError, VerificationError
from ..model_folder.folder import ModelFolder
from ..model_folder.processor import PROBES, has_tokenizer, load_tokenizer
from ..released.catalogue import tokenizers
from .config import CLEANING, HUB_TOKENIZERS


# Words that rules and vocabularies treat differently; open_clip's cleaning changes none of them.
TEXTS = (*(" ".join(probe.split()) for probe in PROBES), "", "ein Bär, 12 °C", "写真 fünf-mal", "UPPER lower 3.5!")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes without rules of their own


@dataclass(frozen=True)
class TextSettings:
    """What becomes of the tokenizer.

    Args:
        settings: Fields of `text_cfg`.
        remark: What the user should know.
        tokenizer: The folder's own; None where it has none.
    """

    settings: dict[str, Any]
    remark: str
    tokenizer: PreTrainedTokenizerBase | None = None


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """A folder's tokenizer, as it was saved: beside a "siglip2" model transformers makes Gemma's of any other."""
    settings = folder / "tokenizer_config.json"
    kind = read_mapping(settings).get("tokenizer_class") if settings.is_file() else None
    if kind in GENERIC and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return load_tokenizer(folder, local_only=True)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[list[int]]:
    """As open_clip calls a tokenizer, and `encode_texts` here."""
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)["input_ids"]


def without_tokenizer(folder: Path, text: SiglipExtTextConfig, address: str) -> TextSettings:
    """A released vocabulary is on the Hub; any other has open_clip look for it here, and say that there is none."""
    known = next((name for name, one in tokenizers().items() if one.vocab_size == text.vocab_size), "")
    repo = HUB_TOKENIZERS.get(known)
    if repo is None:
        settings, remark = {"hf_tokenizer_name": address}, "put its files beside the weights"
    else:
        settings = {"hf_tokenizer_name": repo, "tokenizer_kwargs": {"clean": "canonicalize"}}
        remark = f"by its size the vocabulary is that of {repo}, which hf-hub: takes and local-dir: cannot"
    return TextSettings(settings, f"{folder} has no tokenizer, so none was written and open_clip finds none: {remark}")


def write_tokenizer(folder: ModelFolder, text: SiglipExtTextConfig, draft: Path, address: str) -> TextSettings:
    """Write the folder's tokenizer beside the weights, and compare what open_clip will load with it.

    Args:
        text: The text tower.
        draft: Where the weights are written.
        address: Of the result, for `hf_tokenizer_name`: a repository, or its folder.

    Raises:
        CheckpointError: open_clip cannot use it.
    """
    if not has_tokenizer(folder.path):
        return without_tokenizer(folder.path, text, address)
    tokenizer, length = tokenizer_in(folder.path), text.max_position_embeddings
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer of {folder.path} has no padding token, and open_clip pads every text")
    ids = token_ids(tokenizer, TEXTS, length)
    if max(map(max, ids)) >= text.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder.path} has ids beyond vocab_size {text.vocab_size} of the text tower"
        )
    tokenizer.save_pretrained(draft)
    if token_ids(load_tokenizer(draft, local_only=True), TEXTS, length) != ids:
        raise CheckpointError(
            f"the tokenizer of {folder.path}, a {type(tokenizer).__name__}, gives other tokens without the model's "
            "config.json, which open_clip's folders do not have"
        )
    remark = (
        "open_clip mends texts before its tokenizer sees them (ftfy, HTML entities, white space); others get the "
        "tokens that they get here"
    )
    settings = {"hf_tokenizer_name": address, "tokenizer_kwargs": {"clean": CLEANING}}
    return TextSettings(settings, remark, tokenizer)


def compare_tokens(tokenizer: PreTrainedTokenizerBase, theirs: Callable[..., Any], length: int) -> None:
    """Raise VerificationError where open_clip's tokenizer gives other tokens."""
    found = theirs(list(TEXTS)).tolist()
    for text, own, other in zip(TEXTS, token_ids(tokenizer, TEXTS, length), found):
        if own != other:
            raise VerificationError(f"open_clip's tokenizer makes {other[:8]} … of {text[:20]!r}, not {own[:8]} …")
