"""The five kinds of label noise of the SigLIP paper (arXiv 2303.15343)."""

import torch


KINDS = ("image", "text", "batch", "image_text", "image_text_batch")


def add_noise(
    pixels: torch.Tensor,
    tokens: torch.Tensor,
    kind: str,
    share: float,
    vocab_size: int,
    text_config,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupt each example of a batch with probability `share`.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        tokens: (B, L) ids.
        kind: "image" puts uniform noise in place of an image, "text" random tokens of random length in place of a
            text, "batch" shuffles the texts of the examples among each other; the others combine these, each drawn
            for itself.
        text_config: for its padding and end tokens.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no noise is called {kind!r}; choose from {', '.join(KINDS)}")
    count, length = tokens.shape
    if "image" in kind:
        noisy = torch.rand(count, generator=generator) < share
        uniform = torch.rand(pixels.shape, generator=generator) * 2 - 1
        pixels = torch.where(noisy[:, None, None, None], uniform, pixels)
    if "text" in kind:
        noisy = torch.rand(count, generator=generator) < share
        random = torch.randint(vocab_size, tokens.shape, generator=generator)
        size = torch.randint(1, length, (count, 1), generator=generator)
        place = torch.arange(length)
        random = torch.where(place == size, text_config.eos_token_id, random)
        random = torch.where(place > size, text_config.pad_token_id, random)
        tokens = torch.where(noisy[:, None], random, tokens)
    if "batch" in kind:
        noisy = (torch.rand(count, generator=generator) < share).nonzero().flatten()
        tokens = tokens.clone()
        tokens[noisy] = tokens[noisy[torch.randperm(len(noisy), generator=generator)]]
    return pixels, tokens
