"""Figures of an evaluation before and after an export, as its users know them: recall, accuracy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from modeling_siglip_ext import SiglipExtModel
from siglip_ext_runtime import ExportedModel


# of a model and its processor, by name
Evaluate = Callable[[Any, Any], dict[str, float]]


def before_and_after(source: Path, exported: Path, evaluate: Evaluate, backend: str) -> dict[str, tuple[float, float]]:
    """What the model gives in float32, and what the export does, by figure.

    Args:
        source: the model's folder.
        exported: the folder with both towers.
        backend: the engine that runs it.
    """
    processor = AutoProcessor.from_pretrained(exported)
    model = SiglipExtModel.from_pretrained(source, dtype=torch.float32).eval()
    before, after = evaluate(model, processor), evaluate(ExportedModel(exported, backend), processor)
    return {name: (value, after[name]) for name, value in before.items()}
