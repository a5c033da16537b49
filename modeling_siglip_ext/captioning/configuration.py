"""The sizes of a captioning decoder, and what its tokens mean."""

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..foreign import tower_width
from .texts import TextFormat


MOST_TOKENS = 64  # of SigLIP 2; BERT has room for 512, and each place costs a step


@dataclass(frozen=True)
class CaptionDecoderConfig:
    """Sizes of a decoder, and what its tokens mean.

    Args:
        vocab_size: V, tokens that can be written.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: of the decoder.
        encoder_hidden_size: width of the image tokens.
        max_length: tokens of a text, prefix and end token included.
        bias: whether MLP and the blocks' norms have biases; attention never has. CapPa: no.
        mask_token: whether the table of tokens has a row V for parallel prediction.
        dropout: after attention and inside the MLP, and of attention weights.
        pad_token_id: fills a text behind its end, and is the first input: there is no other start token.
        eos_token_id: ends a text.
        text_format: how the tasks' texts are written.

    Raises:
        ValueError: sizes that make no decoder, or tokens outside the vocabulary.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    encoder_hidden_size: int
    max_length: int = 64
    bias: bool = False
    mask_token: bool = True
    dropout: float = 0.0
    pad_token_id: int = 0
    eos_token_id: int = 1
    text_format: TextFormat = field(default_factory=TextFormat)

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "encoder_hidden_size")
        for name in ("vocab_size", "max_length", *sizes):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_attention_heads={self.num_attention_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        for name in ("pad_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name}={getattr(self, name)} is outside the vocabulary of {self.vocab_size}")

    @classmethod
    def for_towers(
        cls,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        num_hidden_layers: int | None = None,
        **changes: Any,
    ) -> "CaptionDecoderConfig":
        """The decoder that SigLIP 2 puts on a pair of towers: shaped as the text tower, half as deep.

        Args:
            config: of a dual model.
            tokenizer: of its text tower.
            num_hidden_layers: half of the text tower's, rounded down, unless given.
            changes: other fields.

        Raises:
            ValueError: the tokenizer has tokens that the text tower has not, or no token that ends a text.
        """
        text = config.text_config
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise ValueError("the tokenizer has neither eos_token nor sep_token: a caption needs an end")
        if len(tokenizer) > text.vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the text tower {text.vocab_size}")
        # SigLIP pads with the end token, which is a word here; row 0 of its vocabulary is a padding token in disuse
        pad = tokenizer.pad_token_id
        if num_hidden_layers is None:
            num_hidden_layers = max(1, text.num_hidden_layers // 2)
        sizes: dict[str, Any] = {
            "vocab_size": text.vocab_size,
            "hidden_size": tower_width(text),
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "encoder_hidden_size": tower_width(config.vision_config),
            "max_length": min(MOST_TOKENS, text.max_position_embeddings),
            "pad_token_id": 0 if pad is None or pad == end else pad,
            "eos_token_id": end,
        }
        return cls(**{**sizes, **changes})

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size
