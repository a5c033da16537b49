"""What open_clip itself computes with a folder that was written for it, where it is installed.

It is no dependency: torchvision, which it needs, does not load beside every torch.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch.nn.functional import normalize

from modeling_siglip_ext import SiglipExtModel, SiglipExtTextConfig, SiglipExtVisionConfig

from ..errors import VerificationError


TOLERANCE = 1e-5  # of normalised embeddings in float32


@dataclass(frozen=True)
class Inputs:
    """Random ones: images (B, 3, H, W) in [-1, 1], of several shapes for a NaFlex tower, and token ids (B, L)."""

    images: list[torch.Tensor]
    texts: torch.Tensor


def installed() -> ModuleType | str:
    """open_clip, or why it is not there."""
    if importlib.util.find_spec("open_clip") is None:
        return "open_clip is not installed"
    try:
        return importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
        return f"open_clip cannot be imported: {error}"


def random_inputs(vision: SiglipExtVisionConfig, text: SiglipExtTextConfig) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    side = vision.image_size or vision.grid_size * vision.patch_size
    shapes = [(side, side), (side, side + 2 * vision.patch_size)] if vision.naflex else [(side, side)]
    return Inputs(
        [torch.rand(2, 3, *shape, generator=generator) * 2 - 1 for shape in shapes],
        torch.randint(text.vocab_size, (2, text.max_position_embeddings), generator=generator),
    )


def as_patches(images: torch.Tensor, patch: int) -> dict[str, torch.Tensor]:
    """Images of one shape (B, 3, H, W) as a NaFlex tower takes them."""
    count, _, height, width = images.shape
    rows, columns = height // patch, width // patch
    patches = images.unflatten(2, (rows, patch)).unflatten(4, (columns, patch)).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.reshape(count, rows * columns, -1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, columns]] * count),
    }


@torch.no_grad()
def our_embeddings(folder: Path, inputs: Inputs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normalised, in float32, of weights that were stored as `dtype`."""
    model = SiglipExtModel.from_pretrained(folder, dtype=torch.float32).to(dtype).float().eval()
    vision = model.config.vision_config
    given = [
        as_patches(each, vision.patch_size) if vision.naflex else {"pixel_values": each} for each in inputs.images
    ]
    images = [model.get_image_features(**each).pooler_output for each in given]
    texts = model.get_text_features(input_ids=inputs.texts).pooler_output
    return {"image": normalize(torch.cat(images), dim=-1), "text": normalize(texts, dim=-1)}


@torch.no_grad()
def compare_outputs(open_clip: ModuleType, folder: Path, inputs: Inputs, ours: dict[str, torch.Tensor]) -> float:
    """Load a folder as a user of open_clip would; the largest difference of its embeddings from ours.

    Raises:
        VerificationError: It cannot be loaded, or gives other embeddings.
    """
    try:
        model = open_clip.create_model(f"local-dir:{folder}").eval()
    except (RuntimeError, ValueError, TypeError, OSError, AssertionError, LookupError) as error:
        raise VerificationError(f"open_clip cannot load the result: {str(error)[:300]}") from error
    theirs = {
        "image": torch.cat([model.encode_image(images, normalize=True) for images in inputs.images]),
        "text": model.encode_text(inputs.texts, normalize=True),
    }
    found = {kind: (theirs[kind].float() - embeds).abs().max().item() for kind, embeds in ours.items()}
    for kind, difference in found.items():
        if not difference <= TOLERANCE:
            raise VerificationError(f"open_clip's own {kind} embeddings differ by {difference:.1e}")
    return max(found.values())
