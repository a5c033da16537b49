"""`evaluate`: the figures of a model on data, in Python, in the commands and in training alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from modeling_siglip_ext.encoding import collect, encode_texts, items_of, stream_images, undecoded

from .data import Classes, EvaluationData
from .metrics.retrieval import retrieval_metrics
from .metrics.zero_shot import (
    ForcedChoiceTask,
    accuracies,
    class_embeddings,
    fill_templates,
    first_of_same,
    forced_choice_accuracy,
    zero_shot_metrics,
    zero_shot_ranks,
)
from .prompts import canonicalize as canonical
from .results import Counts, EvaluatedModel, Result


logger = logging.get_logger(__name__)
Embed = Callable[[list[str]], torch.Tensor]
Embeds = torch.Tensor | np.ndarray


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    data: EvaluationData,
    *,
    image_embeds: Embeds | None = None,
    text_embeds: Embeds | None = None,
    unreadable: Mapping[int, str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    canonicalize: bool = True,
    batch_size: int = 64,
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
        unreadable: rows of `image_embeds` that do not count, and why.
        ks: of Recall@k.
        canonicalize: lower-case prompts without punctuation, as big_vision does.
        batch_size, workers, progress: as in `encode_images`.

    Raises:
        ValueError: nothing to measure, embeddings of another number, or no image that counts.

    Example:
        >>> result = evaluate(model, processor, select("my-captions.parquet"))  # doctest: +SKIP
        >>> result.metrics["text_to_image_recall@1"]  # doctest: +SKIP
        0.91
    """
    with_texts = data.captions is not None or text_embeds is not None
    labels, classes = data.labels, data.classes
    with_classes = labels is not None and classes is not None
    if not (with_texts or with_classes or data.tasks):
        raise ValueError("nothing to evaluate: give captions, labels with classes, or tasks")

    def embed(texts: list[str]) -> torch.Tensor:
        rows = encode_texts(model, processor, texts, batch_size=batch_size, return_tensors="pt", progress=False)
        return torch.as_tensor(rows)

    if image_embeds is None:
        images, unreadable = embed_images(model, processor, data, batch_size, workers, progress)
    else:
        images, unreadable = torch.as_tensor(image_embeds).float(), unreadable or {}
    rows = count_of(data)
    if rows is not None and rows != len(images):
        raise ValueError(f"{len(images)} image embeddings for {rows} rows")
    readable = [row for row in range(len(images)) if row not in unreadable]
    if not readable:
        raise ValueError("none of the images can be read")
    metrics: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    counts: dict[str, Any] = {"evaluated": len(readable), "unreadable": sorted(unreadable)}
    predictions = None
    if with_texts:
        texts = embed(data.texts) if text_embeds is None else torch.as_tensor(text_embeds).float()
        metrics |= retrieval(images, texts, data.captions, readable, ks, counts)
    if labels is not None and classes is not None:
        found, predictions, single = classification(embed, images, labels, classes, readable, canonicalize, batch_size)
        metrics |= found
        counts["evaluated"] = sum(place >= 0 for place in predictions)
        counts["without_label"] = sum(not own for own in labels)
        settings |= {
            "class_names": classes.names_from,
            "classes": len(classes.names),
            "templates": classes.templates_from,
            "template_count": len(classes.templates),
            "canonicalize": canonicalize,
            "labels": "one a row" if single else "any of several",
        }
    metrics |= task_accuracies(embed, F.normalize(images, dim=-1), data)
    done = [name for name, yes in (("retrieval", with_texts), ("zero-shot", with_classes)) if yes] or ["zero-shot"]
    return Result(
        " and ".join(done),
        metrics,
        model=evaluated_model(model),
        dataset=data.provenance,
        counts=Counts(**counts),
        settings=settings,
        predictions=predictions,
    )


def evaluated_model(model: nn.Module) -> EvaluatedModel:
    """What a model says of itself."""
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return EvaluatedModel(name, class_name=type(model).__name__, dtype=dtype)


def count_of(data: EvaluationData) -> int | None:
    """The number of rows, where the data say it."""
    sized = next((one for one in (data.captions, data.labels) if one is not None), None)
    return None if sized is None else len(sized)


def embed_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    data: EvaluationData,
    batch_size: int,
    workers: int | None,
    progress: bool | None,
) -> tuple[torch.Tensor, dict[int, str]]:
    """Embeddings (rows, D) of the data's images, and why some are not readable."""
    if data.images is None:
        raise ValueError("the data have no images: give image_embeds")
    source = undecoded(data.images, data.image_column or "image")
    items, count = items_of(source, data.image_column, "image")
    batches = stream_images(model, processor, items, batch_size=batch_size, workers=workers)
    embeds, errors, _ = collect(batches, count, "images", "report", progress, model)
    warn_of_unreadable(errors, len(embeds))
    return embeds, errors


def warn_of_unreadable(errors: Mapping[int, str], count: int) -> None:
    """One warning for all images that cannot be read."""
    if errors:
        shown = "; ".join(f"{row}: {message}" for row, message in list(errors.items())[:10])
        logger.warning("%d of %d images cannot be read and do not count: %s", len(errors), count, shown)


def retrieval(
    images: torch.Tensor,
    texts: torch.Tensor,
    captions: Sequence[Sequence[str]] | None,
    readable: Sequence[int],
    ks: Sequence[int],
    counts: dict[str, Any],
) -> dict[str, float]:
    """Recall@k among the readable images that have a caption; says in `counts` how many took part."""
    if captions is None:
        captions = [[""]] * len(images)
    if sum(map(len, captions)) != len(texts):
        raise ValueError(f"{len(texts)} text embeddings for {sum(map(len, captions))} captions")
    kept = [row for row in readable if captions[row]]
    place = {row: index for index, row in enumerate(kept)}
    owner = torch.tensor([place.get(row, -1) for row, own in enumerate(captions) for _ in own])
    chosen = (owner >= 0).nonzero()[:, 0]
    counts |= {"evaluated": len(kept), "texts": len(chosen)}
    of_images, of_texts = F.normalize(images[torch.tensor(kept)], dim=-1), F.normalize(texts[chosen], dim=-1)
    return retrieval_metrics(of_images, of_texts, owner[chosen], ks=ks)


def classification(
    embed: Embed,
    images: torch.Tensor,
    labels: Sequence[Sequence[int]],
    classes: Classes,
    readable: Sequence[int],
    canonicalize: bool,
    batch_size: int,
) -> tuple[dict[str, float], list[int], bool]:
    """Zero-shot accuracies of the readable images with a label, the class put first for each row (-1 for the others),
    and whether every image has one label.
    """
    kept = [row for row in readable if labels[row]]
    if not kept:
        raise ValueError("no image has a label")
    names, templates = list(classes.names), list(classes.templates)
    if canonicalize:
        names, templates = [canonical(name) for name in names], [canonical(one) for one in templates]
    prompts = fill_templates(names, templates)
    prototypes = class_embeddings(embed, prompts, batch_size=batch_size)
    part, own, first_of = F.normalize(images[kept], dim=-1), [labels[row] for row in kept], first_of_same(prompts)
    single = all(len(one) == 1 for one in own)
    if single:
        metrics = zero_shot_metrics(part, prototypes, [one[0] for one in own], first_of=first_of)
    else:
        metrics = accuracies(zero_shot_ranks(part, prototypes, own, first_of=first_of), len(prototypes))
    chosen = torch.cat([(rows @ prototypes.T).argmax(1) for rows in part.split(4096)])
    predictions = torch.full((len(images),), -1)
    predictions[kept] = chosen
    return metrics, predictions.tolist(), single


def task_accuracies(embed: Embed, images: torch.Tensor, data: EvaluationData) -> dict[str, float]:
    """`zero_shot_<name>` of each further task; `images` are normalised."""
    metrics = {}
    for task in data.tasks:
        part = images[torch.tensor(task.rows)]
        if isinstance(task, ForcedChoiceTask):
            accuracy = forced_choice_accuracy(embed, part, task)
        else:
            classes = class_embeddings(embed, task.prompts)
            accuracy = zero_shot_metrics(part, classes, task.labels, ks=(1,))["accuracy@1"]
        metrics[f"zero_shot_{task.name}"] = accuracy
    return metrics
