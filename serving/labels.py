"""Sets of labels, embedded once, and the scores of images for them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_siglip_ext.pipeline_siglip_ext import (
    CACHE_ROWS,
    DEFAULT_TEMPLATE,
    RowCache,
    check_labels,
    check_templates,
)
from modeling_siglip_ext.texts import check_characters

from .batcher import Item, Outcome
from .encoder import Facts


Key = tuple[tuple[str, ...], tuple[str, ...]]  # labels and templates


def read_label_sets(path: Path) -> dict[str, Key]:
    """Sets by name from a JSON file: `{"name": ["cat", "dog"]}`, or with templates
    `{"name": {"labels": [...], "templates": ["a photo of a {}."]}}`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sets = {name: given if isinstance(given, dict) else {"labels": given} for name, given in found.items()}
        return {name: label_key(**given) for name, given in sets.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no label sets as {{name: [labels]}}: {error}") from error


def label_key(labels: Sequence[str], templates: str | Sequence[str] | None = None) -> Key:
    """
    Raises:
        ValueError, TypeError: no labels, one twice, a template without `{}`, or half of a character.
    """
    key = check_labels(labels), check_templates(DEFAULT_TEMPLATE if templates is None else templates)
    check_characters([*key[0], *key[1]])
    return key


class LabelError(ValueError):
    """The model gives no vector for a label."""


@dataclass(frozen=True)
class LabelSet:
    """Labels as the model has them.

    Args:
        embeds: (labels, D) float32 of unit length.
        cut: places of those that were longer than the text tower, in one of the templates.
    """

    embeds: np.ndarray
    cut: frozenset[int]

    def __len__(self) -> int:
        return len(self.embeds)


class LabelEmbeddings:
    """Sets of labels; the latest ones are kept.

    Args:
        encode: vectors of items, as of `Batcher.encode`.
        batch: texts at a time: a large set takes its turn among the others.
    """

    def __init__(self, encode: Callable[[Sequence[Item]], Awaitable[list[Outcome]]], batch: int):
        self.encode, self.batch = encode, batch
        self.cache: RowCache[LabelSet] = RowCache(CACHE_ROWS)
        self.kept: dict[Key, LabelSet] = {}
        self.running: dict[Key, asyncio.Task[LabelSet]] = {}

    async def register(self, key: Key) -> LabelSet:
        """Embed a set and keep it for good."""
        self.kept[key] = await self.embed(key)
        return self.kept[key]

    async def of(self, key: Key) -> LabelSet:
        """Requests that ask for the same new set share the work, also when one of them goes away."""
        if key in self.kept:
            return self.kept[key]
        found = self.cache.get(key)
        if found is not None:
            return found
        task = self.running.get(key)
        if task is None:
            task = self.running[key] = asyncio.create_task(self.embed(key))
            task.add_done_callback(lambda _: self.running.pop(key))
        labels = await asyncio.shield(task)
        self.cache.put(key, labels)
        return labels

    async def embed(self, key: Key) -> LabelSet:
        """The mean over the templates of unit vectors, of unit length again, as in the pipeline.

        Raises:
            LabelError: a label has no vector.
        """
        labels, templates = key
        texts = [template.replace("{}", label) for label in labels for template in templates]
        rows: list[Any] = []
        cut: set[int] = set()
        for start in range(0, len(texts), self.batch):
            items = [Item("text", text) for text in texts[start : start + self.batch]]
            for item, outcome in zip(items, await self.encode(items)):
                if outcome.error is not None:
                    raise LabelError(f"{item.content!r:.100}: {outcome.error}")
                if outcome.cut:
                    cut.add(len(rows) // len(templates))
                rows.append(outcome.embed)
        means = np.stack(rows).reshape(len(labels), len(templates), -1).mean(axis=1)
        return LabelSet(means / np.linalg.norm(means, axis=1, keepdims=True), frozenset(cut))


def cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(images, texts) float64 of unit vectors (images, D) and (texts, D)."""
    # `@` would wake the threads of BLAS, which then spin for 0.1 s on the cores that the workers compute on
    return np.einsum("id,td->it", images.astype(np.float64), texts.astype(np.float64))


def logits(facts: Facts, cosines: np.ndarray) -> np.ndarray:
    return cosines * facts.logit_scale + facts.logit_bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def ranked(
    row: np.ndarray,
    labels: Sequence[str],
    cut: Collection[int],
    function: str,
    top_k: int | None,
    threshold: float | None,
) -> list[dict[str, Any]]:
    """Labels with their scores from the logits (labels,) of an image, best first; of equal ones the earlier first.
    Those that were `cut` say so."""
    scores = sigmoid(row) if function == "sigmoid" else softmax(row)
    order = np.argsort(-row, kind="stable")[:top_k].tolist()
    order = order if threshold is None else [place for place in order if scores[place] >= threshold]
    shortened = {place: {"truncated": True} for place in cut}
    return [{"label": labels[place], "score": float(scores[place]), **shortened.get(place, {})} for place in order]
