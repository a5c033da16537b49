"""One run of a study: a small model from scratch, trained for a given number of examples, and what it reaches.

A run takes one thread and draws everything at random from its seed, so the same settings give the same numbers on one
machine, however many runs go on beside it.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.evaluation.metrics.retrieval import retrieval_ranks
from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.threads import one_thread

from ..components.schedule import DECAYS
from ..optimizers import build_optimizer
from ..optimizers.parameter_groups import GroupSettings, kernel_names, parameter_groups
from .data import IMAGE_SIZE, TEXT_LENGTH, Part, StudyData, load_data
from .noise import add_noise
from .some_negatives import sigmoid_loss_of_some_negatives


EMBED_BATCH = 512


@dataclass(frozen=True)
class Settings:
    """All that distinguishes one run from another; `Runs` keeps results by it."""

    seed: int = 0
    loss: str = "sigmoid"
    batch_size: int = 128
    examples: int = 12_000
    optimizer: str = "adamw"
    beta2: float = 0.95
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4  # big_vision's convention: not multiplied by the learning rate
    warmup: float = 0.1
    temperature: float = 10.0
    bias: float | None = None  # None: -log(batch size), where the loss of a new model is smallest
    learns_bias: bool = True
    noise: str | None = None
    noise_share: float = 0.0
    negatives: str | None = None
    negatives_share: float = 1.0
    languages: tuple[str, ...] = ("en",)

    def __post_init__(self):
        object.__setattr__(self, "languages", tuple(self.languages))  # a list when read from JSON


def train_and_evaluate(settings: Settings, device: str = "cpu") -> dict[str, float]:
    """Train and evaluate, on the CPU.

    Returns:
        `validation_*` and `held_out_*`: recall@1 and @5 both ways and `mrr`, the mean reciprocal rank over both ways;
        for several languages the mean over them. `loss` of the last batch, `temperature`, `bias`, `steps`, `seconds`.
    """
    started = time.perf_counter()
    with one_thread():
        torch.manual_seed(settings.seed)
        data = load_data(settings.languages)
        model = build_model(settings, data)
        loss = train(model, data.train, settings)
        figures = {}
        for name, part in (("validation", data.validation), ("held_out", data.held_out)):
            figures |= {f"{name}_{key}": value for key, value in evaluate(model, part).items()}
    figures |= {"loss": loss, "temperature": model.logit_scale.exp().item(), "steps": steps_of(settings)}
    if model.logit_bias is not None:
        figures["bias"] = model.logit_bias.item()
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


def build_model(settings: Settings, data: StudyData) -> SiglipExtModel:
    """Towers of width 64 with one layer each, about 0.4 million parameters."""
    layer = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    bias = -math.log(settings.batch_size) if settings.bias is None else settings.bias
    config = SiglipExtConfig(
        vision_config={**layer, "image_size": IMAGE_SIZE, "patch_size": 8},
        text_config={**layer, "max_position_embeddings": TEXT_LENGTH, **data.tokens},
        loss_type=settings.loss,
        logit_scale_init=math.log(settings.temperature),
        logit_bias_init=bias if settings.loss == "sigmoid" else None,
    )
    model = SiglipExtModel(config)
    if model.logit_bias is not None:
        model.logit_bias.requires_grad_(settings.learns_bias)  # one that stays 0 is none
    return model


def steps_of(settings: Settings) -> int:
    return settings.examples // settings.batch_size


def train(model: SiglipExtModel, part: Part, settings: Settings) -> float:
    """Train over shuffled epochs without their last, incomplete batch; returns the loss of the last step."""
    generator = torch.Generator().manual_seed(settings.seed)
    groups = GroupSettings(settings.learning_rate, settings.weight_decay, "big_vision", {}, {}, None)
    optimizer = build_optimizer(
        settings.optimizer, parameter_groups(model, kernel_names(model), groups), beta2=settings.beta2
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = steps_of(settings)
    batches = iter(())
    model.train()
    for step in range(steps):
        indices = next(batches, None)
        if indices is None:
            order = torch.randperm(len(part), generator=generator)
            batches = iter(order.split(settings.batch_size)[: len(part) // settings.batch_size])
            indices = next(batches)
        factor = min(1.0, step / max(1.0, settings.warmup * steps)) * DECAYS["cosine"](step / steps)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * factor
        pixels = normalized(part.images[indices])
        tokens = draw_tokens(part, indices, settings.languages, generator)
        if settings.noise is not None:
            text = model.config.text_config
            noise = settings.noise, settings.noise_share
            pixels, tokens = add_noise(pixels, tokens, *noise, text.vocab_size, text, generator)
        loss = loss_of(model, pixels, tokens, settings, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def loss_of(
    model: SiglipExtModel, pixels: torch.Tensor, tokens: torch.Tensor, settings: Settings, generator: torch.Generator
) -> torch.Tensor:
    outputs = model(pixel_values=pixels, input_ids=tokens, return_loss=False)
    embeds = outputs.image_embeds, outputs.text_embeds
    if settings.loss == "softmax":
        return softmax_loss(*embeds, model.logit_scale)
    assert model.logit_bias is not None  # the configuration insists
    head = model.logit_scale, model.logit_bias
    if settings.negatives is None:
        return sigmoid_loss(*embeds, *head)
    return sigmoid_loss_of_some_negatives(
        *embeds, *head, share=settings.negatives_share, choice=settings.negatives, generator=generator
    )


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def draw_tokens(
    part: Part, indices: torch.Tensor, languages: tuple[str, ...], generator: torch.Generator
) -> torch.Tensor:
    """The name of each image in a language drawn at random."""
    if len(languages) == 1:
        return part.tokens[languages[0]][indices]
    choice = torch.randint(len(languages), (len(indices),), generator=generator)
    every = torch.stack([part.tokens[language][indices] for language in languages])
    return every[choice, torch.arange(len(indices))]


@torch.inference_mode()
def evaluate(model: SiglipExtModel, part: Part) -> dict[str, float]:
    """Retrieval among all pairs of a part; a mean over its languages."""
    model.eval()
    pixels = normalized(part.images).split(EMBED_BATCH)
    images = torch.cat([unit(model.get_image_features(pixel_values=batch)) for batch in pixels])
    sums: dict[str, float] = {}
    for tokens in part.tokens.values():
        texts = torch.cat([unit(model.get_text_features(input_ids=batch)) for batch in tokens.split(EMBED_BATCH)])
        for key, value in retrieval(images, texts).items():
            sums[key] = sums.get(key, 0.0) + value / len(part.tokens)
    return sums


def unit(output) -> torch.Tensor:
    return nn.functional.normalize(output.pooler_output, dim=-1)


def retrieval(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    ways = dict(zip(("image_to_text", "text_to_image"), retrieval_ranks(images, texts)))
    figures = {f"{way}_recall@{k}": (ranks < k).float().mean().item() for way, ranks in ways.items() for k in (1, 5)}
    return figures | {"mrr": sum((1 / (ranks.float() + 1)).mean().item() for ranks in ways.values()) / 2}
