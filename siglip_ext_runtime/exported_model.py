"""`ExportedModel`: an exported folder that answers like a model of transformers."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .backends import BACKENDS, Run
from .settings import read_settings


VISION, TEXT = "vision_model", "text_model"


@dataclass(frozen=True)
class ExportedOutput:
    """What a tower gives: arrays, or tensors where tensors were given.

    Args:
        last_hidden_state: token states (B, N, D), float32.
        pooler_output: the embedding before normalisation, (B, E).
        embeds: the embedding at unit length, (B, E).
    """

    last_hidden_state: Any
    pooler_output: Any
    embeds: Any


class ExportedModel:
    """A folder that `siglip-ext-convert to-onnx`, `to-openvino` or `to-aoti` wrote.

    Inputs are numpy arrays or torch tensors, and outputs are of the same kind. A tower is loaded when it is first
    used, and may be used by several threads. torch is imported only if something of it is asked for. `encode_images`,
    `encode_texts`, the zero-shot pipeline and the evaluation take it in the place of a model.

    Args:
        folder: with `export.json`.
        backend: "onnx" for ONNX Runtime, "openvino", which also runs ONNX files, in float32, or "aoti" for torch's
            AOTInductor, whose files are machine code: run those you trust.
        threads: of the engine; None for one a core. AOTInductor has those of torch.

    Raises:
        FileNotFoundError: no such folder, or an incomplete one.
        ValueError: a damaged folder, or an unknown backend.

    Example:

    ```python
    from siglip_ext_runtime import ExportedModel

    model = ExportedModel("my-siglip-onnx")
    print(model.get_text_features(input_ids).embeds)
    ```"""

    training = False
    input_modalities = ("image", "text")  # what pipelines ask a model

    def __init__(self, folder: str | Path, backend: str = "onnx", *, threads: int | None = None):
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        self.folder, self.backend, self.threads = Path(folder), backend, threads
        self.settings = read_settings(folder)
        self.name_or_path = str(folder)
        self._towers: dict[str, Run] = {}
        self._lock = threading.Lock()

    def tower(self, name: str) -> Run:
        """The engine of a tower, loaded once.

        Raises:
            ValueError: the folder has no such tower, or its file is damaged.
        """
        with self._lock:
            if name not in self._towers:
                files = self.settings.files
                if name not in files:
                    raise ValueError(
                        f"{self.folder} holds {', '.join(files)} and no {name}: export it with --towers both"
                    )
                hints = (self.settings.runtime or {}).get(self.backend, {})
                run = BACKENDS[self.backend](self.folder / files[name], threads=self.threads, **hints)
                self._towers[name] = run
            return self._towers[name]

    def get_image_features(
        self, pixel_values: Any, pixel_attention_mask: Any = None, spatial_shapes: Any = None
    ) -> ExportedOutput:
        """
        Args:
            pixel_values: images (B, 3, H, W), or for NaFlex patches (B, L, p·p·3).
            pixel_attention_mask: for NaFlex, 1 for patches, 0 for padding, (B, L).
            spatial_shapes: for NaFlex, rows and columns of patches of each image, (B, 2).

        Raises:
            ValueError: inputs that the tower does not take.
        """
        images = {"pixel_values": pixel_values}
        shapes = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        if pixel_attention_mask is not None and spatial_shapes is not None:
            wrong = wrong_grid(as_array(pixel_attention_mask), as_array(spatial_shapes))
            if wrong:  # engines compute something
                raise ValueError(f"{self._file(VISION)} does not take these inputs: {wrong}")
        return self._run(VISION, images | shapes, "image_embeds")

    def get_text_features(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None
    ) -> ExportedOutput:
        """
        Args:
            input_ids: (B, L); SigLIP's texts are padded to the tower's length.
            attention_mask: for towers from elsewhere, 1 for tokens, 0 for padding, (B, L); made from the padding's id
                if not given. SigLIP's take none.
            token_type_ids: reach no tower: a text is one segment.

        Raises:
            ValueError: inputs that the tower does not take.
        """
        ids, padding, count = as_array(input_ids), self.settings.pad_token_id, self.settings.vocabulary
        if count is not None and (ids.min(initial=0) < 0 or ids.max(initial=0) >= count):  # engines take any for some
            raise ValueError(f"{self._file(TEXT)} does not take these inputs: tokens are 0 to {count - 1}")
        if attention_mask is None:
            attention_mask = np.ones_like(ids) if padding is None else ids != padding
        return self._run(TEXT, {"input_ids": input_ids, "attention_mask": attention_mask}, "text_embeds")

    def _file(self, tower: str) -> str:
        return Path(self.settings.files.get(tower, tower)).name

    def _run(self, name: str, inputs: dict[str, Any], embeds: str) -> ExportedOutput:
        first = next(iter(inputs.values()))
        found = self.tower(name)({key: as_array(value) for key, value in inputs.items() if value is not None})
        values = (found["last_hidden_state"], found["pooler_output"], found[embeds])
        return ExportedOutput(*(like(first, value) for value in values))

    def fingerprint(self) -> str:
        """A hash of all files of the towers."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(self.folder.rglob("*")):
            if any(path.name.startswith(Path(name).stem + ".") for name in self.settings.files.values()):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    # ---- what code for models of torch asks of one

    @cached_property
    def config(self) -> Any:
        """The configuration of the model that was exported."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder)

    @property
    def logit_scale(self) -> Any:
        """The logarithm of the scale, a tensor (1,)."""
        return self._scalar(self.settings.logit_scale)

    @property
    def logit_bias(self) -> Any:
        """A tensor (1,); None where the model has none."""
        return None if self.settings.logit_bias is None else self._scalar(self.settings.logit_bias)

    def _scalar(self, value: float | None) -> Any:
        import torch

        if value is None:
            raise ValueError(f"{self.folder} holds an image tower alone, which has no logit scale")
        return torch.tensor([value])

    @property
    def device(self) -> Any:
        """Where tensors are expected; they come back on the device that they were on."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        """Of the inputs, whatever the weights are."""
        import torch

        return torch.float32

    def parameters(self) -> Iterator[Any]:
        """The loss head's: the towers' weights are inside the engine."""
        yield self._scalar(self.settings.logit_scale or 0.0)

    def modules(self) -> Iterator[Any]:
        """None of torch's."""
        return iter(())

    def to(self, *_: Any, **__: Any) -> "ExportedModel":
        """It stays where it is."""
        return self

    def eval(self) -> "ExportedModel":
        """It is always in evaluation mode."""
        return self

    def can_generate(self) -> bool:
        return False


def as_array(value: Any) -> np.ndarray:
    """An array of what was given, on the host; bfloat16, which numpy lacks, as float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def wrong_grid(mask: np.ndarray, shapes: np.ndarray) -> str | None:
    """What contradicts the other: the first rows times columns patches are the image's, and the others padding. Arrays
    of a wrong shape are left to the engine."""
    if mask.ndim != 2 or shapes.shape != (len(mask), 2):
        return None
    counts = shapes.astype(np.int64).prod(axis=1)
    for image, (shape, marked, patches) in enumerate(zip(shapes.tolist(), mask.astype(bool), counts)):
        if min(shape) < 1 or patches > len(marked) or not np.array_equal(marked, np.arange(len(marked)) < patches):
            return f"image {image} has a grid of {shape} patches, and {marked.sum()} of {len(marked)} marked"
    return None


def like(given: Any, array: np.ndarray) -> Any:
    """The array, as a tensor on the device of what was given if that was one."""
    if not hasattr(given, "detach"):
        return array
    import torch

    return torch.from_numpy(array).to(given.device)
