"""Texts that a decoder writes to images, word after word, and the likelihood of texts that are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..losses.vocabulary import vocabulary_loss
from .decoder import CaptionDecoder, decoder_inputs
from .unpadded import without_padding


@dataclass(frozen=True)
class Sampling:
    """How words are drawn; without it the likeliest word is taken.

    Args:
        temperature: above 0; below 1 likely words become likelier.
        top_k: draw among this many likeliest words.
        top_p: draw among the fewest words whose probabilities add up to this.
        seed: of the draws for the first text; the others have the numbers after it.

    Raises:
        ValueError: settings out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}; the likeliest word is taken without sampling"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def processors(self) -> LogitsProcessorList:
        chosen = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            chosen.append(TopPLogitsWarper(float(self.top_p)))
        return chosen


@torch.no_grad()
def generate(
    decoder: CaptionDecoder,
    encoded: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    encoded_mask: torch.Tensor | None = None,
    max_length: int | None = None,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Write one text to each image, with the keys and values of what is written kept.

    Args:
        decoder: in eval mode.
        encoded: tokens of the images, (B, N, E).
        prompts: for each image the tokens that its text begins with, perhaps none; lengths may differ.
        encoded_mask: True for tokens of the image, (B, N).
        max_length: of prompt and text in tokens; the decoder's unless given.
        sampling: draw words; by default the likeliest is taken.

    Returns:
        For each image the tokens after its prompt, without the end token.

    Raises:
        ValueError: a prompt that leaves no room for a text, or not one an image.
    """
    config = decoder.config
    limit = config.max_length if max_length is None else min(max_length, config.max_length)
    if len(prompts) != len(encoded):
        raise ValueError(f"{len(prompts)} prompts for {len(encoded)} images")
    if not prompts:
        return []
    longest = max(map(len, prompts))
    if longest >= limit:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in {limit} tokens")
    device = encoded.device
    processors = None if sampling is None else sampling.processors()
    # one a text: what is drawn for it does not depend on what is written beside it
    seeds = [] if sampling is None else range(sampling.seed, sampling.seed + len(encoded))
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    filled = [[*prompt, *[config.pad_token_id] * (limit - len(prompt))] for prompt in prompts]
    written = torch.tensor(filled, device=device)

    cache = decoder.new_cache(encoded)
    current = written.new_full((len(encoded),), config.pad_token_id)
    ended = torch.zeros(len(encoded), dtype=torch.bool, device=device)
    for place in range(limit):
        logits = decoder.step(current, place, cache, encoded_mask).float()
        if processors is None:
            chosen = logits.argmax(-1)
        else:
            chances = processors(cast(Any, written), cast(Any, logits)).softmax(-1)
            chosen = torch.cat([torch.multinomial(row, 1, generator=own) for row, own in zip(chances, generators)])
        free = place >= starts  # the others are still in their prompt
        current = torch.where(free, chosen.masked_fill(ended, config.pad_token_id), written[:, place])
        written[:, place] = current
        ended |= free & (chosen == config.eos_token_id)
        if ended.all():
            break
    texts = [row[len(prompt) :] for row, prompt in zip(written.tolist(), prompts)]
    return [text[: text.index(config.eos_token_id)] if config.eos_token_id in text else text for text in texts]


@torch.no_grad()
def log_likelihoods(
    decoder: CaptionDecoder,
    encoded: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor,
    *,
    encoded_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-likelihood of texts given images, summed over their tokens: the score of CapPa as a classifier.

    Args:
        decoder: in eval mode.
        encoded: tokens of the images, (B, N, E).
        labels: T texts for each image, (B, T, L).
        token_weights: 1 for tokens that count and 0 for padding and prefixes, of the same shape.
        encoded_mask: True for tokens of the image, (B, N).

    Returns:
        (B, T).
    """
    rows, row_weights = labels.flatten(0, 1), token_weights.flatten(0, 1)
    tokens, _ = without_padding(row_weights)
    states = decoder(decoder_inputs(rows, decoder.config), encoded, encoded_mask=encoded_mask, tokens=tokens)
    output = decoder.output
    result = vocabulary_loss(states, output.weight, output.bias, tokens.take(rows), tokens.take(row_weights))
    return -(tokens.pad(result.token_losses).view(labels.shape) * token_weights).sum(-1)
