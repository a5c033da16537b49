"""A big_vision checkpoint to a folder that `from_pretrained` loads."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.image_utils import PILImageResampling

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtTextConfig,
    SiglipExtVisionConfig,
    SiglipExtVisionModel,
    native_config,
)
from modeling_siglip_ext.positions import resample_positions

from .big_vision import (
    Choices,
    check_complete,
    describe,
    identity_head,
    modern,
    parameters,
    rules,
    stacked_towers,
    unclaimed,
)
from .containers import CheckpointError, read_checkpoint
from .name_map import to_torch


LEFT_OUT = {  # an array, or the prefix of several: what it is
    "llm/": "PaliGemma's language model",
    "t": "the temperature of a model of one tower (CLIPPO)",
}
FORMATS = ("native", "ext")


def left_out_as(name: str) -> str | None:
    """Which entry of LEFT_OUT an array falls under."""
    return next((key for key in LEFT_OUT if name == key or (key.endswith("/") and name.startswith(key))), None)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion did: the model, and the arrays of the checkpoint that it has no place for."""

    model: SiglipExtModel | SiglipExtVisionModel
    left_out: list[str]


def load_jax(checkpoint: str | Path, choices: Choices | None = None, *, identity: bool = False) -> Converted:
    """The model that a big_vision checkpoint holds, in float32.

    Args:
        checkpoint: Path of an `.npz` file or a tensorstore folder.
        choices: What the file does not tell (image size, poolings, heads of a BERT).
        identity: Whether a text tower without a head gets one that changes nothing, so that stock classes fit.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Not a big_vision image-text checkpoint, or one with arrays that nothing here understands.
    """
    choices = Choices() if choices is None else choices
    params = modern(parameters(read_checkpoint(checkpoint)))
    try:
        config = describe(params, choices)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    table = rules(config, stacked_towers(params))
    left_out = [name for name in unclaimed(params, table) if left_out_as(name)]
    unknown = sorted(set(unclaimed(params, table)) - set(left_out))
    if unknown:
        raise CheckpointError(f"{checkpoint}: nothing here understands {', '.join(unknown)}")
    check_complete(params, table)

    tensors = {}
    for name, tensor in tqdm(to_torch(table, lambda name: params[name].load()), total=len(table), desc="converting"):
        if name.endswith("vision_model.embeddings.position_embedding.weight"):
            tensor = at_resolution(tensor, config)
        tensors[name] = tensor.float()
    text = getattr(config, "text_config", None)
    if identity and isinstance(text, SiglipExtTextConfig) and not text.use_head:
        tensors |= identity_head(text)
        text.use_head = True
    return Converted(build(config, tensors), left_out)


def at_resolution(positions: torch.Tensor, config: SiglipExtConfig | SiglipExtVisionConfig) -> torch.Tensor:
    """The position table for the model's image size, resampled where the checkpoint had another."""
    vision = config if isinstance(config, SiglipExtVisionConfig) else config.vision_config
    same = positions.shape[0] == vision.grid_size**2
    return positions if same else resample_positions(positions, vision.grid_size)


def build(
    config: SiglipExtConfig | SiglipExtVisionConfig, tensors: dict[str, torch.Tensor]
) -> SiglipExtModel | SiglipExtVisionModel:
    """The model with these tensors as its parameters; every name and shape must match."""
    if isinstance(config, SiglipExtVisionConfig):
        model = SiglipExtVisionModel(config)
        tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    else:
        model = SiglipExtModel(config)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the arrays do not fit the model they describe: {error}") from error
    return model.eval()


def image_processor(config: SiglipExtVisionConfig) -> SiglipExtImageProcessor | SiglipExtNaflexImageProcessor:
    """Bilinear, as every big_vision model was trained."""
    if config.naflex:
        return SiglipExtNaflexImageProcessor(patch_size=config.patch_size, max_num_patches=config.num_patches)
    size = {"height": config.image_size, "width": config.image_size}
    return SiglipExtImageProcessor(size=size, resample=PILImageResampling.BILINEAR)


def convert(
    checkpoint: str | Path, out: str | Path, choices: Choices | None = None, *, form: str | None = None
) -> Converted:
    """Write the folder `out`; it appears complete or not at all.

    Args:
        form: "native" for the stock form (ValueError where it cannot express the model), "ext" for the `siglip_ext`
            form, None for the stock form where possible.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, CheckpointError: See `load_jax`.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another folder or remove it")
    converted = load_jax(checkpoint, choices, identity=form != "ext")
    model = converted.model
    if form == "native" and native_config(model.config) is None:
        raise ValueError(f"the stock classes cannot express {checkpoint}; leave --format out, or use --format ext")
    vision = getattr(model.config, "vision_config", model.config)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        model.save_pretrained(folder, native=None if form is None else form == "native")
        image_processor(vision).save_pretrained(folder)
        os.chmod(folder, 0o755)  # mkdtemp makes it private
        os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return converted
