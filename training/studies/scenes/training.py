"""Towers from scratch and what trains beside them, on scenes: the objectives of the package in a plain loop."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.captioning import TASKS, CaptionDecoder

from ...components.initial_values import set_initial_values
from ...components.schedule import DECAYS
from ...objectives.captioning import Captioning, CaptionLossSettings
from ...objectives.matching import MatchingSettings
from ...objectives.model import ObjectiveModel, TrainedObjective
from ...objectives.self_distillation import self_distillation
from ...optimizers import build_optimizer
from ...optimizers.parameter_groups import GroupSettings, kernel_names, parameter_groups
from .data import PATCH, SIZE, TEXT_LENGTH, DataSettings, TrainingScenes, decoder_config, tokenizer_of
from .settings import SceneRun


WIDTH = 128
WARMUP = 0.1
# of temperature and bias
HEAD_FACTOR = 10.0
PARALLEL = "caption_parallel"  # drawn here: `parallel` is a setting of a run
Choose = Callable[[ObjectiveModel, dict[str, torch.Tensor], int], dict[str, torch.Tensor]]


def build_model(settings: SceneRun) -> ObjectiveModel:
    """Towers of 0.9 million parameters for images of 36 patches, and the objectives of the settings."""
    tokenizer = tokenizer_of(settings.box_scale)
    config = SiglipExtConfig(
        vision_config={
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        text_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "projection_size": WIDTH,
            "max_position_embeddings": TEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        logit_bias_init=-math.log(settings.batch_size),
    )
    model = SiglipExtModel(config)
    set_initial_values(model, settings.initial)
    parts: dict[str, TrainedObjective] = {}
    # drawn last, so that runs that differ in their objectives begin with the same towers
    if settings.captioning:
        parts["captioning"] = Captioning(build_decoder(settings), CaptionLossSettings(settings.task_weights))
    if settings.self_supervised:
        matching = MatchingSettings(
            momentum=settings.momentum, hidden=256, bottleneck=64, prototypes=settings.prototypes
        )
        own = self_distillation(model, settings.self_supervised, matching, settings.starts_at)
        parts |= {name: part for name, (part, _) in own.items()}
    return ObjectiveModel(model, parts)


def build_decoder(settings: SceneRun) -> CaptionDecoder:
    data = DataSettings(box_scale=settings.box_scale)
    return CaptionDecoder(decoder_config(data, WIDTH, num_hidden_layers=settings.decoder_layers))


def train(
    model: ObjectiveModel, settings: SceneRun, device: torch.device, choose: Choose | None = None
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Train in place, a step at a time; each scene is seen once.

    Args:
        model: see `build_model`.
        settings: of the run.
        device: where the model is.
        choose: what is trained on, of twice as many examples where the settings have a score.

    Yields:
        Steps made, and the losses of the last, without weights.
    """
    steps, weights = settings.steps, {"captioning": settings.captioning, **settings.self_supervised}
    optimizer, peaks = optimizer_of(model, settings)
    draw = torch.Generator().manual_seed(settings.seed)
    step = 0
    model.train()
    for data, count in settings.phases:
        scenes = TrainingScenes(data, count * settings.drawn, settings.seed)
        for place in range(count):
            model.activate(step / steps)
            wanted = model.inputs(step / steps) & scenes.names
            rows = scenes.batch(place * settings.drawn, settings.drawn, ("pixels", "input_ids", *sorted(wanted)))
            if settings.captioning:
                rows[PARALLEL] = torch.zeros(settings.drawn, len(TASKS), dtype=torch.bool)
                rows[PARALLEL][:, 0] = torch.rand(settings.drawn, generator=draw) < settings.parallel
            batch = on_device(rows, device)
            if choose is not None:
                batch = choose(model, batch, step)
            factor = min(1.0, step / (WARMUP * steps)) * DECAYS["cosine"](step / steps)
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = peak * factor
            outputs = model(objectives=True, return_loss=True, **batch)
            losses = {"contrastive": outputs.loss, **outputs.objective_losses}
            total = settings.contrastive * outputs.loss
            for name, loss in outputs.objective_losses.items():
                total = total + weights[name] * loss
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            model.after_step()
            step += 1
            yield step, {name: loss.detach() for name, loss in losses.items()}


def optimizer_of(model: nn.Module, settings: SceneRun) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW over the parameters that are trained, and the learning rates at their peak."""
    groups = GroupSettings(settings.learning_rate, settings.weight_decay, "torch", {"head": HEAD_FACTOR}, {}, None)
    optimizer = build_optimizer("adamw", parameter_groups(model, kernel_names(model), groups))
    return optimizer, [group["lr"] for group in optimizer.param_groups]


def on_device(rows: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as models and objectives take it."""
    batch = {}
    for name, values in rows.items():
        moved = values.to(device)
        if moved.dtype == torch.int16:
            moved = moved.long()
        elif name in ("pixels", "global_view", "local_views"):
            moved = normalized(moved)
        elif name == "caption_weights":
            moved = moved.float()
        batch["pixel_values" if name == "pixels" else name] = moved
    return batch


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float().div_(127.5).sub_(1)
