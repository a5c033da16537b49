"""Vectors of prepared inputs: the model's own, and those of a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling_siglip_ext.image_budget import collate
from siglip_ext_runtime.backends import BACKENDS

from .samples import Inputs, Samples
from .towers import DUAL, MODULES, OUTPUTS, TEXT, VISION


TOGETHER = 64  # in one batch of a file, as a user might
ALONE = 8  # computed by themselves, too
BATCH = 16  # of torch: more takes memory and no less time
EMBEDS = {VISION: ("image_embeds",), TEXT: ("text_embeds",), DUAL: ("text_embeds", "image_embeds")}
Embed = Callable[[Inputs], torch.Tensor]


def inputs_of(samples: Samples, name: str) -> list[Inputs]:
    """What a tower is judged on; the whole model on pairs of an image and a text."""
    if name == DUAL:
        return [text | image for text, image in zip(samples.texts, samples.images)]
    return list(samples.images if name == VISION else samples.texts)


def embeds_of(name: str, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, D) at unit length; of the whole model (B, 2·D), text and image beside one another."""
    parts = [outputs[key] for key in EMBEDS[name]]
    return torch.cat(parts, dim=-1) / len(parts) ** 0.5


def images_and_texts(pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole model's vectors those of the images and of the texts, each (B, D)."""
    texts, images = pairs.chunk(2, dim=-1)
    return images, texts


def by_torch(model: PreTrainedModel, name: str) -> Embed:
    """By the model, or by that tower of it alone."""
    module = MODULES[name](model).eval()

    def embed(inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            return embeds_of(name, dict(zip(OUTPUTS[name], module(**inputs))))

    return embed


def by_file(path: Path, name: str, backend: str = "onnx", *, threads: int | None = None) -> Embed:
    """By an engine."""
    run = BACKENDS[backend](path, threads=threads)

    def embed(inputs: Inputs) -> torch.Tensor:
        found = run({key: tensor.numpy() for key, tensor in inputs.items()})
        return embeds_of(name, {key: torch.from_numpy(found[key]) for key in EMBEDS[name]})

    return embed


def embed_all(embed: Embed, inputs: Sequence[Inputs], size: int) -> torch.Tensor:
    """(N, D) of prepared inputs, `size` at once."""
    return torch.cat([embed(collate(inputs[start : start + size])) for start in range(0, len(inputs), size)])
