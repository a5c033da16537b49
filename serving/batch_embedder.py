"""The encoder inside engines that hand out rows in batches: Ray Data's `map_batches`, and `datasets.map`.

The engine shares the rows among its workers, and gives a batch again whose worker died. Here a batch becomes vectors,
by a model that each worker loads once; an input that cannot be read costs its own row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from modeling_siglip_ext.dual_models import ModelSettings, load_dual_model
from modeling_siglip_ext.encoding import EncodedBatch, evaluating, joined, stream_images, stream_texts
from modeling_siglip_ext.inputs import ONE, inputs_of
from modeling_siglip_ext.texts import check_characters


@dataclass
class BatchEmbedder:
    """Rows in, rows with `embedding` (D,) float32 and `error` out.

    `embedding` is NaN where an input cannot be read, and `error` says why; it is empty for all others, so that the
    column is of strings in every batch. What is pickled is how to load the model, never the model.

    Args:
        model: name on the Hub, or a folder that all workers see.
        kind: "image" or "text".
        column: of the inputs, `kind` by default: of images whatever `encode_images` takes, of undecoded columns of
            `datasets` too.
        device, dtype, revision, trust_remote_code, backend, threads: as for `ModelSettings`; a worker of Ray sees its
            own accelerator.
        batch_size: inputs in one forward pass, whatever the engine's batch.
        workers: threads that read and prepare images; by default one a core of the machine, at most 8.
        normalize: to unit length.
        max_num_patches, upscale, batch_tokens: of a NaFlex model; see `encode_images`.

    Raises:
        ValueError: another kind, a batch without the column, or with one of the two new ones, which would be lost.
        TypeError: a batch as a table, whose other columns would be lost, or a row by itself.

    Example:

        options = {"model": "google/siglip2-base-patch16-224", "device": "cuda"}
        rows = ray.data.read_parquet("my-captions.parquet")
        rows = rows.map_batches(BatchEmbedder, fn_constructor_kwargs=options, concurrency=8, num_gpus=1)
        rows.write_parquet("my-vectors")
    """

    model: str
    kind: str = "image"
    column: str | None = None
    device: str | None = None
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    backend: str | None = None
    threads: int | None = None
    batch_size: int = 64
    workers: int | None = None
    normalize: bool = True
    max_num_patches: int | None = None
    upscale: bool = True
    batch_tokens: int | None = None
    # of a folder: `datasets` keeps what a function gave under a hash of the pickled function, which must follow them
    marks: list[tuple[str, int, int]] = field(init=False, repr=False)
    loaded: tuple[PreTrainedModel, ProcessorMixin] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in ("image", "text"):
            raise ValueError(f"kind={self.kind!r}; choose 'image' or 'text'")
        own = {one.name: getattr(self, one.name) for one in fields(ModelSettings)}
        self.settings = ModelSettings(**own)
        self.budget = self.settings.budget
        folder = Path(self.model)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        self.marks = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaded": None}

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model and its processor, loaded by this process when they are first wanted."""
        if self.loaded is None:
            self.loaded = load_dual_model(self.settings)
        return self.loaded

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a batch and the two new ones; of a batch of `datasets`, which keeps its own, only these."""
        column = self.column or self.kind
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a batch is a {type(batch).__name__}, not a mapping of columns: leave out batch_format with Ray, and "
                "with datasets take with_format(None)"
            )
        if column not in batch:
            raise ValueError(f"the rows have no column {column!r}; they have {', '.join(batch)}: give column=")
        if taken := {"embedding", "error"} & set(batch):
            raise ValueError(f"the rows have a column {min(taken)!r} already, which would be lost: rename it")
        if is_one(batch[column], self.kind):
            raise TypeError(f"{column!r} holds one input, not a batch: take batched=True, with Ray map_batches")
        inputs = list(batch[column])
        model, _ = self.load()
        with evaluating(model):
            encoded = self.images(inputs) if self.kind == "image" else self.texts(inputs)
        errors = np.array([encoded.errors.get(place, "") for place in range(len(inputs))], dtype=object)
        kept = batch if isinstance(batch, dict) else {}
        return {**kept, "embedding": encoded.embeds[: len(inputs)].numpy(), "error": errors}

    def images(self, inputs: list) -> EncodedBatch:
        options: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "budget": self.budget}
        some = inputs or [Image.new("RGB", (32, 32))]  # for the width, where there are none
        return joined(stream_images(*self.load(), some, normalize=self.normalize, **options))

    def texts(self, inputs: list) -> EncodedBatch:
        faults = {place: fault for place, text in enumerate(inputs) if (fault := fault_of(text))}
        texts = ["" if place in faults else text for place, text in enumerate(inputs)] or [""]
        options: dict[str, Any] = {"batch_size": self.batch_size, "normalize": self.normalize}
        encoded = joined(stream_texts(*self.load(), texts, **options))
        encoded.embeds[list(faults)] = torch.nan
        encoded.errors.update(faults)
        return encoded


def is_one(given: Any, kind: str) -> bool:
    """Whether it is one input, as of a row by itself, whose letters or lines would be taken for a batch."""
    if isinstance(given, np.ndarray) and kind == "image":
        return given.ndim > 1 and inputs_of(given).single
    return given is None or isinstance(given, (*ONE, Mapping))


def fault_of(text: Any) -> str | None:
    """Why something is no text."""
    if not isinstance(text, str):
        return "there is no text" if text is None else f"a {type(text).__name__} is no text"
    try:
        check_characters([text])
    except ValueError as error:
        return str(error)
    return None
