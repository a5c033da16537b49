"""How much memory the loss over a vocabulary takes, in bytes; those of a chunk's logits; those of the gradients.

Usage: vocabulary_worker.py float32|bfloat16
"""

import sys
from pathlib import Path

import torch

from modeling_siglip_ext.losses.vocabulary import vocabulary_loss


WORDS, WIDTH, TOKENS, CHUNK = 256_000, 4, 192, 40


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def loss(words: int) -> list[torch.Tensor]:
    """Computed with its gradients; the parameters."""
    weight, bias = torch.randn(words, WIDTH, requires_grad=True), torch.zeros(words, requires_grad=True)
    states = torch.randn(TOKENS, WIDTH, requires_grad=True)
    labels, weights = torch.randint(words, (TOKENS,)), torch.full((TOKENS,), 1 / TOKENS)
    with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[1] == "bfloat16"):
        vocabulary_loss(states, weight, bias, labels, weights, chunk_tokens=CHUNK).loss.backward()
    return [weight, bias]


loss(500)  # what is loaded and compiled at the first call is no memory of the loss
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = resident("VmRSS:")
parameters = sum(parameter.nbytes for parameter in loss(WORDS))
print(resident("VmHWM:") - before - parameters, CHUNK * WORDS * 4, parameters)
