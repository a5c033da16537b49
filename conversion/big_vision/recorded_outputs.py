"""Compares what a converted model computes with what the original code computed (an `io.npz`)."""

from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModel

from ..containers.arrays import LazyArray
from ..containers.npz import read_npz
from ..errors import CheckpointError, VerificationError


# Largest allowed difference in float32; the loss is relative.
TOLERANCES = {
    "image_embeds": 1e-6,
    "text_embeds": 1e-6,
    "logits_per_image": 1e-5,
    "loss": 1e-5,
    "patch_features": 1e-5,
}
LOSSES = {"sigmoid": "out/loss_sigmoid", "softmax": "out/loss_softmax_bidirectional"}


def model_inputs(recorded: dict[str, LazyArray]) -> dict[str, torch.Tensor]:
    """The recorded inputs as the model takes them: images NHWC in [-1, 1] (or NaFlex patches), token ids."""

    def load(name: str) -> torch.Tensor:
        if name not in recorded:
            raise CheckpointError(f"the recorded inputs have no {name}")
        return recorded[name].load()

    inputs = {}
    if "in/patches" in recorded:
        inputs["pixel_values"] = load("in/patches")
        inputs["pixel_attention_mask"] = load("in/type").long()
        inputs["spatial_shapes"] = load("in/spatial_shapes").long()
    else:
        inputs["pixel_values"] = load("in/image").permute(0, 3, 1, 2)
    if "in/text" in recorded:
        inputs["input_ids"] = load("in/text").long()
    return inputs


def computed(folder: Path, inputs: dict[str, torch.Tensor], recorded: dict[str, LazyArray]) -> dict[str, tuple]:
    """What the model computes, and the name of what the original computed."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if model.config.model_type.endswith("_vision_model"):
            inputs.pop("input_ids", None)
            output = model(**inputs)
            if "out/img_tokens" in recorded:  # PaliGemma: one vector a patch, projected or not
                projected = getattr(model.config, "projection_size", None) is not None
                name = "out/img_tokens" if projected else "out/img/encoded"
                return {"patch_features": (output.pooler_output if projected else output.last_hidden_state, name)}
            return {"image_embeds": (normalize(output.pooler_output, dim=-1), "out/zimg")}
        output = model(**inputs)
        found = {
            "image_embeds": (output.image_embeds, "out/zimg"),
            "text_embeds": (output.text_embeds, "out/ztxt"),
            "logits_per_image": (output.logits_per_image, "out/logits_per_image"),
        }
        if len(output.image_embeds) == len(output.text_embeds):
            name = LOSSES[getattr(model.config, "loss_type", "sigmoid")]
            found["loss"] = (model(**inputs, return_loss=True).loss, name)
    return found


def compare_outputs(folder: str | Path, io: str | Path) -> dict[str, float]:
    """The largest difference of every output that the file records.

    Args:
        io: An `.npz` with `in/image` or `in/patches`, `in/text`, and `out/zimg`, `out/ztxt`, `out/logits_per_image`,
            `out/loss_sigmoid` as far as there are any.

    Raises:
        CheckpointError: The file records nothing that this model computes.
        VerificationError: An output differs by more than rounding in float32.
    """
    recorded = read_npz(io)
    differences = {}
    for key, (value, name) in computed(Path(folder), model_inputs(recorded), recorded).items():
        if name not in recorded:
            continue
        expected = recorded[name].load().float()
        if value.shape != expected.shape:
            raise VerificationError(f"{key} has the shape {tuple(value.shape)}, {name} {tuple(expected.shape)}")
        difference = (value - expected).abs().max().item()
        differences[key] = difference / abs(expected.item()) if key == "loss" else difference
        if not differences[key] <= TOLERANCES[key]:
            raise VerificationError(f"{key} differs by {differences[key]:.3g}, more than {TOLERANCES[key]:g}")
    if not differences:
        raise CheckpointError(f"{io} records no output of this model")
    return differences
