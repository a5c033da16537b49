"""One run on scenes: train, and measure on a validation part, where settings are chosen, and on a held-out one."""

import time
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.captioning import CaptionDecoder
from modeling_siglip_ext.threads import one_thread

from ...data.scenes import Scenes
from ...objectives.captioning import Captioning, CaptionLossSettings, caption_loss
from ...objectives.model import ObjectiveModel
from .choice import Choice
from .data import DataSettings, Part, TrainingScenes, load_part, scene_settings
from .figures import (
    DenseProbes,
    caption_figures,
    features_of,
    name_accuracy,
    referring_figures,
    retrieval_figures,
)
from .settings import SceneRun
from .training import WARMUP, build_decoder, build_model, on_device, train


PARTS = {"validation": 1, "held_out": 2}
"""Seeds of their scenes; training has 0."""
SCENES = 500
PROBE_SCENES = 2000
LAST = 50
MOMENTS = 4
"""How often a run that chooses its examples is measured."""
BOXES_ALONE = CaptionLossSettings((1.0,))


def train_and_evaluate(settings: SceneRun, device: str = "cpu") -> dict[str, float]:
    """Train and evaluate.

    Returns:
        `validation_*` and `held_out_*`, see `figures.py`, `one_*` of scenes of one emoji and `more_*` of two or three;
        `train_*`, losses of the last 50 steps; `probe_*`, a fresh decoder on the frozen tower; `steps`, `seconds`,
        `step_seconds`. With `quarters` instead: `clean_1` to `clean_4`, the share of clean
        pairs that were trained on in each quarter, and `held_out_recall@1_1` to `_4` after each.
    """
    started, place = time.perf_counter(), torch.device(device)
    with one_thread():
        torch.manual_seed(settings.seed)
        model = build_model(settings).to(place)
        choice = Choice(settings, place) if settings.quarters else None
        figures, seconds = _trained(model, settings, place, choice)
        figures |= evaluate(model, settings, place)
    figures |= {"steps": settings.steps, "step_seconds": seconds / settings.steps}
    return figures | {"seconds": round(time.perf_counter() - started, 1)}


def _trained(
    model: ObjectiveModel, settings: SceneRun, device: torch.device, choice: Choice | None
) -> tuple[dict[str, float], float]:
    """Figures of the training itself, and the seconds it took."""
    figures: dict[str, float] = {}
    last: dict[str, list[torch.Tensor]] = {}
    seconds, began = 0.0, time.perf_counter()
    for step, losses in train(model, settings, device, choice):
        if step > settings.steps - LAST:
            for name, loss in losses.items():
                last.setdefault(f"train_{name}", []).append(loss)
        if choice is not None and step * MOMENTS % settings.steps < MOMENTS:
            seconds += time.perf_counter() - began
            moment = step * MOMENTS // settings.steps
            figures |= {f"clean_{moment}": choice.clean_share()} | _recalls(model, settings, device, f"_{moment}")
            model.train()
            began = time.perf_counter()
    figures |= {name: torch.stack(values).mean().item() for name, values in last.items()}
    return figures, seconds + time.perf_counter() - began


def _core(model: ObjectiveModel) -> SiglipExtModel:
    return cast(SiglipExtModel, model.model)


def _parts(settings: SceneRun, objects: tuple[int, int]) -> Iterator[tuple[str, Part]]:
    for name, seed in PARTS.items():
        yield name, load_part(objects, SCENES, seed, settings.box_scale)


def _recalls(model: ObjectiveModel, settings: SceneRun, device: torch.device, behind: str = "") -> dict[str, float]:
    figures = {}
    for name, part in _parts(settings, settings.objects):
        found = retrieval_figures(_core(model), part, features_of(_core(model), part, device), device)
        figures |= {f"{name}_{key}{behind}": value for key, value in found.items()}
    return figures


def evaluate(model: ObjectiveModel, settings: SceneRun, device: torch.device) -> dict[str, float]:
    """All figures of a trained model."""
    core, figures = _core(model), _recalls(model, settings, device)
    if settings.quarters:
        return figures
    model.eval()
    probed = load_part(settings.objects, PROBE_SCENES, 0, settings.box_scale, "train")
    dense = DenseProbes(features_of(core, probed, device), probed.labels)
    captioner = [part for part in model.parts.values() if isinstance(part, Captioning)]
    decoder = captioner[0].decoder if captioner else None
    probe = probe_decoder(core, settings, device) if settings.probe_steps else None
    for name, part in _parts(settings, settings.objects):
        features = features_of(core, part, device)
        own = dense.figures(part, features)
        if decoder is not None:
            own |= caption_figures(decoder, part, features, settings.box_scale)
        figures |= {f"{name}_{key}": value for key, value in own.items()}
    names = Scenes(scene_settings((1, 1))).names
    for kind, objects in (("one", (1, 1)), ("more", (2, 3))):
        for name, part in _parts(settings, objects):
            features = features_of(core, part, device)
            if kind == "one":
                accuracy = name_accuracy(core, part, features, names, settings.box_scale, device)
                figures[f"{name}_one_name"] = accuracy
            for prefix, reads in (("", decoder), ("probe_", probe)):
                if reads is not None:
                    found = referring_figures(reads, part, features.tokens, settings.box_scale)
                    figures |= {f"{name}_{prefix}{kind}_{key}": value for key, value in found.items()}
    return figures


def probe_decoder(core: SiglipExtModel, settings: SceneRun, device: torch.device) -> CaptionDecoder:
    """A fresh decoder that learns to find phrases from the tokens of a frozen tower: the protocol of RefCOCO."""
    torch.manual_seed(settings.seed)
    decoder = build_decoder(settings).to(device).train()
    steps, size = settings.probe_steps, settings.batch_size
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=max(1, round(WARMUP * steps)))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scenes = TrainingScenes(DataSettings(settings.objects, settings.box_scale), steps * size, settings.seed)
    for step in range(steps):
        batch = on_device(scenes.batch(step * size, size, ("pixels", "caption_labels", "caption_weights")), device)
        with torch.no_grad():
            tokens = core.get_image_features(pixel_values=batch["pixel_values"]).last_hidden_state
        # the second of the tasks
        labels, weights = batch["caption_labels"][:, 1:2], batch["caption_weights"][:, 1:2]
        caption_loss(decoder, tokens, labels, weights, settings=BOXES_ALONE).loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warm.step()
        cosine.step()
    return decoder.eval()
