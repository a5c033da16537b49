"""A model of images and texts with its processor, from a folder or the Hub onto a device, ready to encode."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from .loading import load_whole


def load_dual_model(
    name: str,
    *,
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model in evaluation mode, and its processor.

    Args:
        name: on the Hub, or a folder.
        device: where to compute; None for the accelerator if there is one.
        dtype: "float32", "bfloat16" or "float16".
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether to run code that the model brings.

    Raises:
        OSError: a folder that is not there, or no model in it.
        ValueError: a device that torch cannot compute on, a model that is not of images and texts, or a checkpoint
            without some of its weights.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"{name} is no folder")
    device = checked_device(device or default_device())
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        model = load_whole(AutoModel.from_pretrained, name, dtype=getattr(torch, dtype), **options)[0]
    except OSError as error:
        raise OSError(f"--model {name} cannot be read: {error}") from error
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise ValueError(f"{name} is a {type(model).__name__}, not a model of images and texts")
    processor = AutoProcessor.from_pretrained(name, **options)
    return model.eval().to(device), processor


def default_device() -> str:
    """The accelerator of this process, if there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', 0)}"


def checked_device(name: str) -> str:
    """Raises ValueError where torch cannot compute on it, before a large model is loaded."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise ValueError(f"--device {name}: {error}") from error
    return name
