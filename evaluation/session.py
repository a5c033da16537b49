"""A model under evaluation: it is loaded once, its embeddings are kept on disk, its results are written."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.dual_models import ModelSettings, load_dual_model
from modeling_siglip_ext.embedded_files import Changes, update
from modeling_siglip_ext.encoding import EncodedBatch, stream_images, stream_texts, warn_of_unreadable
from modeling_siglip_ext.file_encoding import encode_image_files, encode_video_files
from modeling_siglip_ext.image_budget import is_naflex
from modeling_siglip_ext.video_frames import Sampling

from .data import Classes, EvaluationData
from .evaluate import NOT_COUNTED, embed_classes, evaluate, text_embedder
from .results import EvaluatedModel, Result, write_result


@dataclass(frozen=True)
class Settings(ModelSettings):
    """How a model is loaded and run, and where what it gives goes.

    Args:
        batch_size: inputs in one forward pass.
        workers: threads that prepare images; None for one a core, at most 8.
        part_rows: embeddings in one file on disk.
        cache_dir: for embeddings, shared between evaluations.
    """

    batch_size: int = 64
    workers: int | None = None
    part_rows: int = 4096
    cache_dir: str = "results/embeddings"

    def __post_init__(self) -> None:
        assert self.budget  # it checks the numbers
        store.check_part_rows(self.part_rows)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")


@dataclass(frozen=True)
class Inputs:
    """What is embedded.

    Args:
        kind: "image" or "text".
        items: paths or texts (None where a row has none), or rows of `datasets` with images in `column`.
        identity: a hash that changes with the inputs.
        column: of the images.
    """

    kind: str
    items: Any
    identity: str | None
    column: str | None = None


@dataclass(frozen=True)
class Files:
    """Files that are embedded, and again when they have changed.

    Args:
        kind: "image" or "video".
        root: their folder.
        names: of all of them, below it, with slashes.
        check_contents: hash all of them, also those whose size and time of change are as before.
        sampling: of videos.
    """

    kind: str
    root: Path
    names: list[str]
    check_contents: bool = False
    sampling: Sampling | None = None


@dataclass
class Session:
    """A model that is being evaluated, and where its embeddings go."""

    settings: Settings
    model: Any  # of torch, or exported
    processor: ProcessorMixin
    weights: str
    started: float

    @classmethod
    def open(cls, settings: Settings) -> "Session":
        """Load the model.

        Raises:
            OSError, ValueError: as `load_dual_model`.
        """
        started = time.monotonic()
        model, processor = load_dual_model(settings)
        return cls(settings, model, processor, store.weights_fingerprint(model), started)

    @property
    def precision(self) -> str:
        """What the model is computed in: a type of torch, or what an exported model says of itself, and its engine."""
        if self.settings.backend is None:
            return self.settings.dtype
        return f"{self.model.settings.precision} ({self.settings.backend})"

    @property
    def first(self) -> bool:
        """Whether this process computes and writes the results."""
        return store.processes()[0] == 0

    def by_length(self, lengths: Sequence[int] | None) -> dict[int, "Session"]:
        """The same for each of several numbers of patches, from the least; without any, this one under 0.

        Raises:
            ValueError: a number below 1, or a model of one image size.
        """
        if not lengths:
            return {0: self}
        settings = {length: replace(self.settings, max_num_patches=length) for length in sorted(set(lengths))}
        for one in settings.values():
            one.budget.check(self.processor.image_processor)
        return {length: replace(self, settings=one) for length, one in settings.items()}

    def images_seen(self) -> dict[str, Any]:
        """What a NaFlex model sees of images, as a result says it; nothing of a model of one size."""
        images, budget = self.processor.image_processor, self.settings.budget
        if not is_naflex(images):
            return {}
        small = {} if budget.upscale else {"small_images": "not enlarged"}
        return {"max_num_patches": budget.longest(images), **small}

    def identity(self, kind: str, **about: Any) -> dict[str, Any]:
        """All that embeddings of this kind depend on."""
        if kind != "text":
            preparation = json.loads(json.dumps(self.processor.image_processor.to_dict(), default=str))
            seen = self.images_seen()
            preparation |= dict.fromkeys(preparation.keys() & seen.keys())  # as it is seen, and not as it was saved
            about |= seen
        else:
            preparation = tokenizer_settings(self.processor.tokenizer)
        return {
            "kind": kind,
            "weights": self.weights,
            "dtype": self.precision,
            "preparation": store.fingerprint({"of": preparation}),
            **about,
        }

    def encode(self, inputs: Inputs, normalize: bool, first: int, last: int) -> Iterator[EncodedBatch]:
        """Embeddings of a part of the inputs."""
        if inputs.column is None:
            part = inputs.items[first:last]
        else:
            part = (row[inputs.column] for row in inputs.items.select(range(first, last)))
        options: dict[str, Any] = {"batch_size": self.settings.batch_size, "normalize": normalize}
        if inputs.kind == "text":
            texts = list(part)
            present = ["" if text is None else text for text in texts]
            return without_captions(texts, stream_texts(self.model, self.processor, present, **options))
        options |= {"workers": self.settings.workers, "budget": self.settings.budget}
        return stream_images(self.model, self.processor, part, **options)

    def write(
        self, folder: Path, identity: Mapping, inputs: Inputs, *, normalize: bool, form: str = "safetensors"
    ) -> None:
        """Write the embeddings that are missing in a folder; see `store.compute`."""
        store.compute(
            folder,
            identity,
            len(inputs.items),
            partial(self.encode, inputs, normalize),
            self.model,
            form=form,
            part_rows=self.settings.part_rows,
            what=f"{inputs.kind}s",
        )

    def update(self, folder: Path, files: Files, *, form: str, model: str) -> Changes:
        """Bring the embeddings of files in a folder up to date, of unit length; see `embedded_files.update`."""
        about, sampling = self.settings, files.sampling
        options: dict[str, Any] = {"batch_size": about.batch_size, "workers": about.workers, "budget": about.budget}
        encode: Any = encode_image_files
        identity = self.identity(files.kind, normalized=True, model=model)
        part_files = about.part_rows
        if sampling is not None:
            encode, part_files = encode_video_files, -(-part_files // 64)  # a file may give as many rows and more
            identity |= asdict(sampling)
            options["sampling"] = sampling
        return update(
            folder,
            identity,
            files.root,
            files.names,
            lambda names: encode(self.model, self.processor, files.root, names, **options),
            self.model,
            form=form,
            part_files=part_files,
            what=f"{files.kind}s",
            check_contents=files.check_contents,
        )

    def embed(self, inputs: Inputs) -> tuple[torch.Tensor, dict[int, str]]:
        """Embeddings (inputs, D) through the cache, not normalised, and why some are missing; none unless `first`."""
        identity = self.identity(inputs.kind, data=inputs.identity, column=inputs.column)
        folder = Path(self.settings.cache_dir) / store.fingerprint(identity)
        self.write(folder, identity, inputs, normalize=False)
        if not self.first:  # it computes no figures
            return torch.empty(0), {}
        embeds, errors, _ = store.read(folder)
        warn_of_unreadable(errors, len(embeds), NOT_COUNTED)
        return embeds, errors

    def embed_images(self, data: EvaluationData) -> tuple[torch.Tensor, dict[int, str]]:
        """Embeddings (rows, D) of the data's images, and why some cannot be read; as `embed`."""
        assert data.provenance is not None
        return self.embed(Inputs("image", data.images, data.provenance.fingerprint, data.image_column))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (texts, D); as `embed`."""
        return self.embed(Inputs("text", texts, store.fingerprint({"texts": list(texts)})))[0]

    def embed_classes(self, classes: Classes, *, canonicalize: bool) -> torch.Tensor:
        """Embeddings (classes, D) of the prompts of classes, of unit length; for `evaluate`."""
        embed = text_embedder(self.model, self.processor, self.settings.batch_size)
        return embed_classes(embed, classes, canonicalize, self.settings.batch_size)

    def evaluate(self, data: EvaluationData, **options: Any) -> Result:
        """`evaluate` with embeddings of this session; `options` are its further arguments."""
        return evaluate(self.model, self.processor, data, batch_size=self.settings.batch_size, **options)

    def finish(self, result: Result, path: Path) -> None:
        """Write and print a result, with what this session knows of it."""
        about = self.settings
        result = replace(
            result,
            settings={**self.images_seen(), **result.settings},
            model=EvaluatedModel(about.model, self.weights, about.revision, type(self.model).__name__, self.precision),
            device=str(self.model.device),
            processes=store.processes()[1],
            seconds=round(time.monotonic() - self.started, 1),
        )
        write_result(path, result)
        for key, value in result.metrics.items():
            if isinstance(value, float):
                print(f"{key:40s} {value:.4f}")
        print(path)


def without_captions(texts: Sequence[str | None], batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
    """Batches with a row of NaN and the reason where there is no text."""
    first = 0
    for batch in batches:
        for place in range(len(batch.embeds)):
            if texts[first + place] is None:
                batch.embeds[place] = torch.nan
                batch.errors[place] = "there is no caption"
        first += len(batch.embeds)
        yield batch


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> Any:
    """What decides which tokens a text has."""
    if not tokenizer.is_fast:
        return {"class": type(tokenizer).__name__, "name": tokenizer.name_or_path, "vocabulary": len(tokenizer)}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # as the last call left them; ours are always those of the text tower
    settings = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    return settings | {"pad": tokenizer.pad_token_id, "padding_side": tokenizer.padding_side}


def crop_centre(image_processor: Any) -> None:
    """Make it resize to int(size / 0.875) and take the middle, as big_vision does for ImageNet; in place.

    Raises:
        ValueError: a NaFlex processor, which keeps the aspect ratio.
    """
    size = image_processor.size
    if not size or "height" not in size:
        raise ValueError("--central_crop needs a model of one image size")
    image_processor.crop_size = dict(size)
    image_processor.size = {side: int(pixels / 0.875) for side, pixels in dict(size).items()}
    image_processor.do_center_crop = True
