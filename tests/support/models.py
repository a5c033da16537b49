"""The smallest towers that have everything: two layers, two heads, and an MLP of a width of its own."""

from modeling_siglip_ext import SiglipExtConfig, SiglipExtImageProcessor, SiglipExtProcessor, train_tokenizer


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TEXT = {**TINY, "vocab_size": 99, "max_position_embeddings": 8}
TINY_VISION = {**TINY, "image_size": 32, "patch_size": 8}
TINY_NAFLEX = {**TINY, "naflex": True, "num_patches": 16, "patch_size": 4}


def make_config(text: dict | None = None, vision: dict | None = None, **pair) -> SiglipExtConfig:
    """A tiny pair of towers with some fields of each, and of the pair, changed."""
    return SiglipExtConfig(
        text_config={**TINY_TEXT, **(text or {})}, vision_config={**TINY_VISION, **(vision or {})}, **pair
    )


def make_processor(texts: list[str], length: int = 64, size: int = 32) -> SiglipExtProcessor:
    """Square images of `size` pixels, and a tokenizer trained on `texts` that pads to `length` tokens."""
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=length)
    return SiglipExtProcessor(SiglipExtImageProcessor(size={"height": size, "width": size}), tokenizer)
