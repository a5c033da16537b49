"""A model of images and texts with its processor, from a folder or the Hub onto a device, ready to encode."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from siglip_ext_runtime import ExportedModel, is_exported

from .image_budget import ImageBudget
from .loading import load_whole
from .modeling_siglip_ext import SiglipExtModel


@dataclass(frozen=True)
class ModelSettings:
    """How a model is loaded, and what it sees of an image.

    Args:
        model: name on the Hub, or a folder.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether to run code that the model brings.
        device: where to compute; None for the accelerator if there is one.
        dtype: "float32", "bfloat16" or "float16".
        backend: of an exported model, "onnx", "openvino" or "aoti"; None for a model of torch.
        threads: of an exported model's engine; None for one a core.
        max_num_patches, upscale, batch_tokens: of a NaFlex model; see `encode_images`.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    device: str | None = None
    dtype: str = "float32"
    backend: str | None = None
    threads: int | None = None
    max_num_patches: int | None = None
    upscale: bool = True
    batch_tokens: int | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the model computes on the CPU."""
        return self.backend is not None or (self.device or default_device()).startswith("cpu")

    @property
    def budget(self) -> ImageBudget:
        """Patches of an image, and of a forward pass."""
        return ImageBudget(self.max_num_patches, self.upscale, self.batch_tokens)


def load_dual_model(settings: ModelSettings) -> tuple[Any, ProcessorMixin]:
    """A model in evaluation mode, and its processor.

    Raises:
        OSError: a folder that is not there, or no model or no processor in it.
        ValueError: a device that torch cannot compute on, a model that is not of images and texts, a checkpoint
            without some of its weights, an exported model without a backend, a device or dtype with one, machine code
            of the Hub without `trust_remote_code`, or settings of NaFlex for another model.
    """
    name, device, dtype, backend = settings.model, settings.device, settings.dtype, settings.backend
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"{name} is no folder")
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    if backend is None:
        model = _of_torch(name, device, dtype, options)
    else:
        if device is not None or dtype != "float32":
            raise ValueError(
                f"--device and --dtype are for models of torch: {backend} computes on the CPU, in the precision of "
                "the export"
            )
        if backend == "aoti" and not (Path(name).is_dir() or settings.trust_remote_code):
            raise ValueError(f"{name} on the Hub is machine code: run it with --trust_remote_code if you trust it")
        folder = name if Path(name).is_dir() else snapshot_download(name, revision=settings.revision)
        model = ExportedModel(folder, backend, threads=settings.threads)
    processor = _processor_of(name, options)
    settings.budget.check(processor.image_processor)
    return model, processor


def _processor_of(name: str, options: dict[str, Any]) -> Any:
    remedy = "save the processor of images and texts there that the model was trained with"
    try:
        processor = AutoProcessor.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise OSError(f"the processor of {name} cannot be loaded ({error}): {remedy}") from error
    for part in ("image_processor", "tokenizer"):
        if not hasattr(processor, part):
            raise ValueError(f"{name} has a {type(processor).__name__} without {part}: {remedy}")
    return processor


def _of_torch(name: str, device: str | None, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    if is_exported(name):
        raise ValueError(f"{name} is an exported model: choose its engine, --backend onnx, openvino or aoti")
    device = checked_device(device or default_device())
    try:
        kind = model_class(AutoConfig.from_pretrained(name, **options).model_type)
        model = load_whole(kind.from_pretrained, name, dtype=getattr(torch, dtype), **options)[0]
    except OSError as error:
        raise OSError(f"--model {name} cannot be read: {error}") from error
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise ValueError(f"{name} is a {type(model).__name__}, not a model of images and texts")
    return model.eval().to(device)


def model_class(model_type: str) -> Any:
    """Ours for a NaFlex model in stock form, as it computes without padding what the stock class pads."""
    return SiglipExtModel if model_type == "siglip2" else AutoModel


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
