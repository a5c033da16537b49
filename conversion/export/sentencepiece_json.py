"""A `tokenizer.json` that says what `SiglipTokenizer` does: a SentencePiece model and rules written in Python.

Runtimes outside of Python read nothing else. The rules (lower case, no punctuation of ASCII, white space as one space)
become normalizers; the model's own table of characters comes after them, as in the class.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from ..errors import CheckpointError


SPACE = "▁"
# What Python's `string.punctuation` and its white space are. The characters themselves, because engines of regular
# expressions differ in how they spell them.
PUNCTUATION = r"[!-/:-@\[-`{-~]"
WHITE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
# Σ at the end of a word, which Python writes ς; marks and some punctuation do not end one
FINAL_SIGMA = r"(?<=\p{L}\p{M}*)Σ(?![\p{M}'.:·’]*\p{L})"
UNIGRAM = 1


def tokenizer_json(vocabulary: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece file, with the rules of the first SigLIP; it ends texts with `</s>`.

    Raises:
        CheckpointError: the file is no SentencePiece model of the kind "unigram", or has no `</s>`.
        ImportError: the library sentencepiece or its protobuf is missing.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(f"{error}: reading {vocabulary} needs `pip install siglip-ext[sentencepiece]`") from error
    found = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009 - made on import: no checker knows it
    try:
        found.ParseFromString(vocabulary.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{vocabulary} is no SentencePiece model: {error}") from error
    trained = found.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in found.pieces]
    end = next((place for place, (piece, _) in enumerate(pieces) if piece == "</s>"), None)
    if trained.model_type != UNIGRAM or end is None:
        raise CheckpointError(f"{vocabulary}: a tokenizer.json is made of SentencePiece's unigrams with </s> alone")
    tokenizer = Tokenizer(models.Unigram(pieces, trained.unk_id, trained.byte_fallback))
    charsmap = found.normalizer_spec.precompiled_charsmap
    collapse = found.normalizer_spec.remove_extra_whitespaces
    steps = [
        normalizers.Replace(SPACE, " "),
        normalizers.Prepend(SPACE),
        # lower case of Σ depends on its place in a word, which the step for one character after the other ignores
        normalizers.Replace(Regex(FINAL_SIGMA), "ς"),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(PUNCTUATION), ""),
        normalizers.Replace(Regex(WHITE), " "),
        normalizers.Replace(Regex(" $"), ""),
        *([normalizers.Precompiled(charsmap)] if charsmap else []),
        *([normalizers.Replace(Regex(" {2,}"), " ")] if collapse else []),
        normalizers.Replace(" ", SPACE),
        *([normalizers.Replace(Regex(f"{SPACE}+$"), "")] if collapse else []),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer
