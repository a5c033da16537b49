"""The processor of a converted model: image settings, and a tokenizer that cuts texts as in training."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.image_utils import PILImageResampling

from modeling_siglip_ext import (
    SiglipExtImageProcessor,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtVisionConfig,
    apply_text_rules,
)
from modeling_siglip_ext.image_processing_siglip_ext import image_processor_for

from ..checkpoint import Preprocessing, Tokenizer
from ..errors import CheckpointError, VerificationError


RESAMPLE = {"bilinear": PILImageResampling.BILINEAR, "bicubic": PILImageResampling.BICUBIC}
PROBES = ("A Photo of a CAT, on the mat!", "two  dogs", "word " * 200)
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
BESIDE_VOCABULARY = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
NO_RULES = (
    "no tokenizer was written: open_clip mends texts before the one beside the checkpoint, and nothing says how; say "
    "it with --text_rules"
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token")


def image_processor(
    config: SiglipExtVisionConfig, images: Preprocessing | None = None
) -> SiglipExtImageProcessor | SiglipExtNaflexImageProcessor:
    """Resizing to the model's size, and values in [-1, 1] unless told otherwise."""
    images = images or Preprocessing()
    return image_processor_for(
        config, resample=RESAMPLE[images.resample], image_mean=list(images.mean), image_std=list(images.std)
    )


def load_tokenizer(source: str | Path, *, local_only: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, a `tokenizer.json`, a SentencePiece `.model` or a Hub repository.

    Raises:
        CheckpointError: Nothing there that is a tokenizer.
    """
    path = Path(source)
    try:
        if path.suffix == ".json":
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.suffix == ".model":
            from transformers import SiglipTokenizer

            return SiglipTokenizer(vocab_file=str(path))
        found = AutoTokenizer.from_pretrained(str(source), local_files_only=local_only)
        if not isinstance(found, PreTrainedTokenizerBase):
            raise ValueError("the model there has none")
        return found
    except ImportError as error:
        raise CheckpointError(f"{source}: {error}; pip install siglip-ext[sentencepiece]") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"no tokenizer at {source}: {error}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of one."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tokenizer_of_folder(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside another library's weights, whose config.json says nothing to transformers.

    Raises:
        CheckpointError: it cannot be read.
    """
    with TemporaryDirectory() as alone:
        for name in (*VOCABULARIES, *BESIDE_VOCABULARY):
            if (folder / name).is_file():
                shutil.copy(folder / name, alone)
        try:
            return load_tokenizer(alone, local_only=True)
        except CheckpointError as error:
            reason = error.__cause__ or error
            raise CheckpointError(
                f"the tokenizer in {folder} cannot be read ({reason}): name one with --tokenizer"
            ) from error


def name_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """A bare `tokenizer.json` does not say which tokens are special; the vocabularies agree on their names."""
    names = {"pad_token": ("<pad>", "[PAD]"), "eos_token": ("<eos>", "</s>"), "unk_token": ("<unk>", "[UNK]")}
    vocabulary = tokenizer.get_vocab()
    for role, candidates in names.items():
        if getattr(tokenizer, role) is None:
            found = next((name for name in candidates if name in vocabulary), None)
            if found is not None:
                setattr(tokenizer, role, found)


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, rules: str, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer with the settings that a model was trained with.

    SentencePiece tokenizers of the first SigLIP stay `SiglipTokenizer`, which has its rules built in; it also strips
    punctuation, which big_vision leaves to whoever writes the prompts.
    """
    tokenizer.model_max_length = max_length
    if rules == "bert":
        return tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
        return tokenizer
    name_special_tokens(tokenizer)
    apply_text_rules(tokenizer, rules, max_length)
    if type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    # classes of one model rebuild their rules when they are loaded and would lose ours
    special = {role: getattr(tokenizer, role) for role in SPECIAL if getattr(tokenizer, role, None) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=max_length,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids"],
        **special,
    )


def write_processor(
    folder: Path,
    vision: SiglipExtVisionConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    images: Preprocessing | None = None,
) -> None:
    """Write the processor's settings; without a tokenizer those of the images alone."""
    processor = image_processor(vision, images)
    if tokenizer is None:
        processor.save_pretrained(folder)
    else:
        SiglipExtProcessor(processor, tokenizer).save_pretrained(str(folder))


def check_tokenizer(folder: Path, rules: str, max_length: int, vocab_size: int) -> None:
    """Load the processor from the folder as a user would, and check what it makes of some texts.

    Raises:
        VerificationError: A text comes out otherwise than in training.
    """
    processor = AutoProcessor.from_pretrained(folder)
    length = {"padding": "max_length", "truncation": True, "max_length": max_length}

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return processor(text=list(texts), **length)["input_ids"]

    rows = ids(PROBES)
    if any(len(row) != max_length for row in rows):
        raise VerificationError(f"the tokenizer does not pad texts to {max_length} tokens")
    if max(map(max, rows)) >= vocab_size:
        raise VerificationError(f"the tokenizer has ids beyond the model's vocabulary of {vocab_size}")
    if rows != ids([text.lower() for text in PROBES]):
        raise VerificationError("the tokenizer does not lower-case")
    if rules == "bert":
        return
    end = processor.tokenizer.eos_token_id
    padding = end if rules == "v1" else processor.tokenizer.pad_token_id
    for text, row in zip(PROBES, rows):
        last = max((place for place, token in enumerate(row) if token != padding), default=-1)
        closing = row[last + 1] if rules == "v1" and last + 1 < max_length else row[last]
        if closing != end or row[0] in (padding, end):
            raise VerificationError(f"the tokenizer does not end {text[:20]!r} as in training: {row[:12]} …")


def check_same_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, vocab_size: int) -> None:
    """Load the processor from the folder as a user would, and compare what it makes of some texts.

    Raises:
        VerificationError: Another tokenizer than the given one, or one that is not of this model.
    """
    length: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": max_length}
    wanted = tokenizer(list(PROBES), **length)["input_ids"]
    if AutoProcessor.from_pretrained(folder)(text=list(PROBES), **length)["input_ids"] != wanted:
        raise VerificationError("the processor gives other tokens than the tokenizer beside the checkpoint")
    if max(map(max, wanted)) >= vocab_size:
        raise VerificationError(f"the tokenizer has ids beyond the model's vocabulary of {vocab_size}")


def missing_tokenizer(tokenizer: Tokenizer | None) -> str:
    """What to tell somebody whose folder has no tokenizer."""
    if tokenizer is None:
        return "no tokenizer was written: a checkpoint does not contain it. Name the right one with --tokenizer"
    files = " ".join(tokenizer.files)
    return (
        f"no tokenizer was written: a checkpoint does not contain it. This model needs {tokenizer.name} "
        f"({tokenizer.vocab_size:,} tokens). Fetch it with\n"
        f"  hf download {tokenizer.repo} {files}\n"
        f"and convert again, or name another copy with --tokenizer"
    )
