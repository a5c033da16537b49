"""`evaluate`: the figures of a model on data, in Python, in the commands and in training alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from modeling_siglip_ext.encoding import collect, encode_texts, stream_images, warn_of_unreadable
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.inputs import inputs_of

from .data import Classes, EvaluationData
from .metrics import zero_shot
from .metrics.retrieval import retrieval_metrics
from .prompts import canonicalize as canonical
from .results import Counts, EvaluatedModel, Result


NOT_COUNTED = "they do not count"  # images that cannot be read
Embed = Callable[[list[str]], torch.Tensor]
Embeds = torch.Tensor | np.ndarray


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    data: EvaluationData,
    *,
    image_embeds: Embeds | None = None,
    text_embeds: Embeds | None = None,
    class_embeds: Embeds | None = None,
    unreadable: Mapping[int, str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    canonicalize: bool = True,
    batch_size: int = 64,
    max_num_patches: int | None = None,
    upscale: bool = True,
    batch_tokens: int | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Result:
    """Measure a model on data.

    With captions, or `text_embeds`, recall@k of retrieval both ways; with labels and classes, zero-shot accuracy@1
    and @5, and mean per-class recall where every image has one label; and `zero_shot_<name>`, the accuracy of each
    further task. The model comes back in the mode that it had.

    Args:
        model: with `get_image_features` and `get_text_features`, ours or stock.
        processor: its processor.
        data: what `select` gives, or made by hand.
        image_embeds: (N, D) of the data's images, where they are computed already; of any length.
        text_embeds: (M, D) of all captions, row after row; without captions in the data, text i is of image i.
        class_embeds: (classes, D) of the data's classes, of unit length, where they are computed already.
        unreadable: rows of `image_embeds` that do not count, and why.
        ks: of Recall@k.
        canonicalize: lower-case prompts without punctuation, as big_vision does.
        batch_size, max_num_patches, upscale, batch_tokens, workers, progress: as in `encode_images`.

    Raises:
        TypeError: `data` is no `EvaluationData`.
        ValueError: nothing to measure, embeddings of another number, or no image that counts.

    Example:
        >>> result = evaluate(model, processor, select("my-captions.parquet"))  # doctest: +SKIP
        >>> result.metrics["text_to_image_recall@1"]  # doctest: +SKIP
        0.91
    """
    if not isinstance(data, EvaluationData):
        raise TypeError(
            f"data is a {type(data).__name__}: give select(...) of a file, folder, name or rows of datasets"
        )
    with_texts = data.captions is not None or text_embeds is not None
    labels, classes = data.labels, data.classes
    with_classes = labels is not None and classes is not None
    if not (with_texts or with_classes or data.tasks):
        raise ValueError("nothing to evaluate: give captions, labels with classes, or tasks")

    embed = text_embedder(model, processor, batch_size)
    if image_embeds is None:
        sizes = {"batch_size": batch_size, "budget": ImageBudget(max_num_patches, upscale, batch_tokens)}
        images, unreadable = embed_images(model, processor, data, workers=workers, progress=progress, **sizes)
    else:
        images, unreadable = torch.as_tensor(image_embeds).float(), unreadable or {}
    if any(rows is not None and len(rows) != len(images) for rows in (data.captions, labels)):
        raise ValueError(f"{len(images)} image embeddings for {len(data.captions or labels or ())} rows")
    readable = [row for row in range(len(images)) if row not in unreadable]
    if not readable:
        raise ValueError("none of the images can be read")
    counts = Counts(evaluated=len(readable), unreadable=sorted(unreadable))
    metrics: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    predictions = None
    if with_texts:
        texts = embed(data.texts) if text_embeds is None else torch.as_tensor(text_embeds).float()
        captions = data.captions or [[""]] * len(images)
        images_of, texts_of, owner = pairs(images, texts, captions, readable)
        metrics |= retrieval_metrics(images_of, texts_of, owner, ks=ks)
        counts = replace(counts, evaluated=len(images_of), texts=len(texts_of))
    if labels is not None and classes is not None:
        kept = [row for row in readable if labels[row]]
        if not kept:
            raise ValueError("no image has a label")
        own = [labels[row] for row in kept]
        if class_embeds is None:
            class_embeds = embed_classes(embed, classes, canonicalize, batch_size)
        prototypes = torch.as_tensor(class_embeds).float()
        prompts = class_prompts(classes, canonicalize)
        part = F.normalize(images[kept], dim=-1)
        metrics |= accuracy_of(part, prototypes, own, zero_shot.first_of_same(prompts))
        predictions = torch.full((len(images),), -1)
        predictions[kept] = torch.cat([(some @ prototypes.T).argmax(1) for some in part.split(4096)])
        counts = replace(counts, evaluated=len(kept), without_label=sum(not one for one in labels))
        settings |= {
            "class_names": classes.names_from,
            "classes": len(classes.names),
            "templates": classes.templates_from,
            "template_count": len(classes.templates),
            "canonicalize": canonicalize,
            "labels": "one a row" if all(len(one) == 1 for one in own) else "any of several",
        }
    for task in data.tasks:
        metrics[f"zero_shot_{task.name}"] = task_accuracy(embed, F.normalize(images[list(task.rows)], dim=-1), task)
    done = ["retrieval"] * with_texts + ["zero-shot"] * with_classes or ["zero-shot"]
    return Result(
        " and ".join(done),
        metrics,
        model=evaluated_model(model),
        dataset=data.provenance,
        counts=counts,
        settings=settings,
        predictions=None if predictions is None else predictions.tolist(),
    )


def text_embedder(model: PreTrainedModel, processor: ProcessorMixin, batch_size: int) -> Embed:
    """What turns texts into embeddings (texts, D) of unit length."""

    def embed(texts: list[str]) -> torch.Tensor:
        rows = encode_texts(model, processor, texts, batch_size=batch_size, return_tensors="pt", progress=False)
        return torch.as_tensor(rows)

    return embed


def class_prompts(classes: Classes, canonicalize: bool) -> list[list[str]]:
    """The texts of each class."""
    change = canonical if canonicalize else str
    return zero_shot.fill_templates(map(change, classes.names), list(map(change, classes.templates)))


def embed_classes(embed: Embed, classes: Classes, canonicalize: bool, batch_size: int) -> torch.Tensor:
    """Embeddings (classes, D) of the texts of each class."""
    return zero_shot.class_embeddings(embed, class_prompts(classes, canonicalize), batch_size=batch_size)


def evaluated_model(model: nn.Module) -> EvaluatedModel:
    """What a model says of itself."""
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return EvaluatedModel(name, class_name=type(model).__name__, dtype=dtype)


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, data: EvaluationData, *, progress: bool | None, **options: Any
) -> tuple[torch.Tensor, dict[int, str]]:
    """Embeddings (rows, D) of the data's images, and why some are not readable; `options` as in `encode_images`."""
    if data.images is None:
        raise ValueError("the data have no images: give image_embeds")
    found = inputs_of(data.images, data.image_column)
    batches = stream_images(model, processor, found.items, **options)
    encoded = collect(batches, found.count, "images", "report", progress, model)
    warn_of_unreadable(encoded.errors, len(encoded.embeds), NOT_COUNTED)
    return encoded.embeds, encoded.errors


def pairs(
    images: torch.Tensor, texts: torch.Tensor, captions: Sequence[Sequence[str]], readable: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the readable images that have a caption: the images and their texts, normalised, and the image of each text.

    Raises:
        ValueError: not one text embedding a caption.
    """
    if sum(map(len, captions)) != len(texts):
        raise ValueError(f"{len(texts)} text embeddings for {sum(map(len, captions))} captions")
    kept = [row for row in readable if captions[row]]
    place = {row: index for index, row in enumerate(kept)}
    owner = torch.tensor([place.get(row, -1) for row, own in enumerate(captions) for _ in own])
    chosen = (owner >= 0).nonzero()[:, 0]
    return F.normalize(images[kept], dim=-1), F.normalize(texts[chosen], dim=-1), owner[chosen]


def accuracy_of(
    images: torch.Tensor, prototypes: torch.Tensor, labels: Sequence[Sequence[int]], first_of: Sequence[int]
) -> dict[str, float]:
    """Accuracies, and mean per-class recall where every image has one label."""
    if all(len(own) == 1 for own in labels):
        return zero_shot.zero_shot_metrics(images, prototypes, [own[0] for own in labels], first_of=first_of)
    ranks = zero_shot.zero_shot_ranks(images, prototypes, labels, first_of=first_of)
    return zero_shot.accuracies(ranks, len(prototypes))


def task_accuracy(embed: Embed, images: torch.Tensor, task: zero_shot.Task) -> float:
    """The accuracy of one task on its rows' images, normalised."""
    if isinstance(task, zero_shot.ForcedChoiceTask):
        return zero_shot.forced_choice_accuracy(embed, images, task)
    prototypes = zero_shot.class_embeddings(embed, task.prompts)
    return zero_shot.zero_shot_metrics(images, prototypes, task.labels, ks=(1,))["accuracy@1"]
