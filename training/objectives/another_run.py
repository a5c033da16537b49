"""Objectives that go on in another run, as the last stages of SigLIP 2 do at another resolution.

Their values come from a checkpoint; the optimiser, the schedule and the place in the data begin anew.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from modeling_siglip_ext.loading import damage_named
from modeling_siglip_ext.positions import resample_positions

from ..components.sharded import load_whole
from .model import TrainedObjective


FILE = "objectives.safetensors"
POSITIONS = "embeddings.position_embedding.weight"
"""Of a teacher's tower, the only table that the resolution decides; a decoder has positions, too, of words."""


def go_on(objectives: Mapping[str, TrainedObjective], checkpoint: Path) -> None:
    """Give objectives the values that they had in a checkpoint; learned positions are resampled.

    Args:
        objectives: by name; others in the checkpoint are left out.
        checkpoint: folder of a run that trained with them.

    Raises:
        FileNotFoundError: there is none, or it has no objectives.
        ValueError: it is damaged, one of the objectives is not in it, or one has another form.
    """
    path = checkpoint / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"objectives_from={str(checkpoint)!r} has no {FILE}: name a checkpoint of a run with objectives"
        )
    parts = nn.ModuleDict(objectives)
    own = parts.state_dict()
    with damage_named(path):
        there = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    remedy = "set objectives and their settings as in that run"
    # without in checkpoints of earlier versions
    for name, form in json.loads(metadata.get("forms", "{}")).items():
        now = forms(parts).get(name, {})
        for key in form.keys() & now.keys():
            if form[key] != now[key]:
                what = f"{name}.{key} is {form[key]!r} there and {now[key]!r} here"
                raise ValueError(f"objectives_from={str(checkpoint)!r}: {what}: {remedy}")
    saved = {name: _fitted(name, value, own) for name, value in there.items() if name in own}
    missing = sorted(own.keys() - saved.keys())
    differing = sorted(name for name, value in saved.items() if value.shape != own[name].shape)
    if missing or differing:
        first = missing[0] if missing else differing[0]
        what = "is missing there" if missing else f"has the shape {tuple(saved[first].shape)} there"
        raise ValueError(
            f"objectives_from={str(checkpoint)!r}: {first}, {tuple(own[first].shape)} here, {what}: {remedy}"
        )
    load_whole(parts, saved)


def forms(parts: nn.ModuleDict) -> dict[str, dict[str, Any]]:
    """What the parameters of objectives mean beyond their shapes, in terms of JSON."""
    return json.loads(json.dumps({name: cast(TrainedObjective, part).form() for name, part in parts.items()}))


def _fitted(name: str, value: torch.Tensor, own: Mapping[str, torch.Tensor]) -> torch.Tensor:
    side = math.isqrt(len(own[name])) if name.endswith(POSITIONS) else 0
    if not side or value.shape == own[name].shape or value.shape[1:] != own[name].shape[1:]:
        return value
    return resample_positions(value, side)
