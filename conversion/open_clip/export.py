"""A model folder as one that open_clip loads."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_siglip_ext.files import new_folder, write_json
from modeling_siglip_ext.loading import some

from ..containers.arrays import DTYPES
from ..containers.damage import read_mapping
from ..containers.safetensors_files import SafetensorsWriter, read_safetensors
from ..errors import CheckpointError
from ..model_folder.folder import ModelFolder
from ..name_map import Piece, array_shapes, pieces_by_array
from ..transfer import compare_back, mapped_back
from .checkpoint import WEIGHTS
from .config import CONFIG, open_clip_config, timm_name
from .names import open_clip_rules, towers_of
from .outputs import compare_outputs, installed, our_embeddings, random_inputs
from .tokenizer import TextSettings, compare_tokens, write_tokenizer
from .towers import TIMM_CONFIG, check_name, named_towers, timm_config, tower_of


INTERPOLATION = {2: "bilinear", 3: "bicubic"}
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Exported:
    """What was written and how far it was verified.

    Args:
        tensors: Their number, each compared with the folder's.
        difference: The largest of open_clip's own embeddings; None where they were not computed.
        remarks: What the user should know.
    """

    tensors: int
    difference: float | None
    remarks: list[str]


def preprocessing(folder: Path) -> dict[str, Any]:
    """`preprocess_cfg`, from the folder's image processor.

    Raises:
        CheckpointError: open_clip prepares no images like that.
    """
    found: dict[str, Any] = {}
    for path in (folder / name for name in PROCESSORS):
        if path.is_file() and not found:
            settings = read_mapping(path)
            found = settings.get("image_processor", settings)
    resample = found.get("resample", 2)
    if resample not in INTERPOLATION:
        raise CheckpointError(f"{folder}: resample {resample} of the image processor; open_clip has 2 and 3")
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if found.get(name) is False]
    if off:
        raise CheckpointError(f"{folder}: {off[0]} is false in the image processor; open_clip always does it")
    return {
        "mean": found.get("image_mean") or [0.5] * 3,
        "std": found.get("image_std") or [0.5] * 3,
        "interpolation": INTERPOLATION[resample],
        "resize_mode": "squash",
    }


def write_weights(
    folder: ModelFolder, draft: Path, dtype: str | None, allow_nonfinite: bool
) -> tuple[dict[str, list[Piece]], torch.dtype]:
    """Write the weights and compare every tensor; the arrays that were written, and their type."""
    table = open_clip_rules(folder.config)
    names = {rule.torch_name for rule in table}
    if names != set(folder.tensors):
        raise CheckpointError(f"{folder.path}: no place for {some(names ^ set(folder.tensors), 5)}")
    shapes = array_shapes(table, {name: folder.tensors[name].shape for name in names})
    pieces = pieces_by_array(table)
    stored = DTYPES[dtype] if dtype else next(iter(folder.tensors.values())).dtype
    if stored is None:
        raise CheckpointError(f"{folder.path}: its tensors are of a type that no weights have; give --dtype")
    with SafetensorsWriter(draft, shapes, stored, filename=WEIGHTS) as writer:
        for name in tqdm(pieces, desc="converting", unit="tensor"):
            blocks = mapped_back(folder.tensors, pieces[name], allow_nonfinite=allow_nonfinite)
            for number, block in enumerate(blocks):
                writer.write(name, block, number, len(pieces[name]))
    compare_back(folder.tensors, read_safetensors(draft / WEIGHTS), pieces)
    return pieces, stored


@dataclass(frozen=True)
class Target:
    """How the result is found: by its folder, or by the name of its repository."""

    out: Path
    repo_id: str | None

    @property
    def timm(self) -> str:
        return f"local-dir:{self.out}" if self.repo_id is None else f"hf-hub:{self.repo_id}"

    @property
    def tokenizer(self) -> str:
        return self.repo_id or str(self.out)


def verify_outputs(
    open_clip: ModuleType, folder: ModelFolder, draft: Path, tokens: TextSettings, stored: torch.dtype
) -> float:
    """Compare what open_clip computes with the draft, which its own configuration names."""
    vision, text = towers_of(folder.config)
    inputs = random_inputs(vision, text)
    difference = compare_outputs(open_clip, draft, inputs, our_embeddings(folder.path, inputs, stored))
    if tokens.tokenizer is not None:
        theirs = open_clip.get_tokenizer(f"local-dir:{draft}")
        compare_tokens(tokens.tokenizer, theirs, text.max_position_embeddings)
    return difference


def to_open_clip(
    folder: ModelFolder,
    out: str | Path,
    *,
    dtype: str | None = None,
    timm_model: str | None = None,
    repo_id: str | None = None,
    allow_nonfinite: bool = False,
) -> Exported:
    """Write weights, tokenizer and configuration for open_clip, verified.

    Args:
        dtype: Of all tensors; None keeps the folder's.
        timm_model: timm's name for the image tower; None finds it, or describes the tower in timm's `config.json`.
        repo_id: USER/NAME that it will have on the Hub; None for a folder that stays where it is.

    Raises:
        FileExistsError: `out` exists.
        CheckpointError: open_clip cannot build this model, or values are not finite.
        VerificationError: The result differs from the folder, or open_clip's own embeddings do.
    """
    vision, text = towers_of(folder.config)
    tower, target = tower_of(vision), Target(Path(out).absolute(), repo_id)
    name, preprocess = timm_model or timm_name(vision), preprocessing(folder.path)
    described = None if name else timm_config(tower, preprocess)
    if timm_model is not None:
        check_name(timm_model, tower)

    def write_config(place: Target, draft: Path, tokens: TextSettings) -> None:
        settings = open_clip_config(folder.config, name or place.timm, preprocess)
        settings["model_cfg"]["text_cfg"] |= tokens.settings
        write_json(draft / CONFIG, settings)

    open_clip_config(folder.config, name or target.timm, preprocess)  # refused before anything is written
    with new_folder(out) as draft:
        tokens = write_tokenizer(folder, text, draft, target.tokenizer)
        pieces, stored = write_weights(folder, draft, dtype, allow_nonfinite)
        if described is not None:
            write_json(draft / TIMM_CONFIG, described)
        open_clip, difference = installed(), None
        if isinstance(open_clip, ModuleType):
            write_config(Target(draft, None), draft, tokens)
            difference = verify_outputs(open_clip, folder, draft, tokens, stored)
        write_config(target, draft, tokens)
    remarks = [tokens.remark]
    if isinstance(open_clip, str):
        unknown = timm_model is not None and timm_model.split(".")[0] not in named_towers()
        checked = (
            f"whether timm's {timm_model!r} is this tower was not checked"
            if unknown
            else "what it would build was compared by the table of timm's towers, its outputs were not"
        )
        remarks.append(f"{open_clip}: {checked}")
    if described is not None and repo_id is None:
        remarks.append(
            f"timm has no name for this image tower, so {CONFIG} names the folder {target.out}, where it must stay; "
            "--repo_id USER/NAME writes it for the Hub"
        )
    return Exported(len(pieces), difference, remarks)
