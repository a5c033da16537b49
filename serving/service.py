"""What the server's paths do: from the body of a request to that of its answer."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .batcher import Batcher, Item, Outcome, QueueFull
from .encoder import Facts
from .fetch import Fetcher
from .held import Held, Share
from .labels import LabelEmbeddings, LabelError, cosines, label_key, logits, ranked, sigmoid
from .metrics import Metrics
from .schemas import ClassifyRequest, EmbeddingsRequest, Link, SimilarityRequest, listed, text_of, to_item
from .settings import ServerSettings
from .workers import Worker


logger = logging.getLogger(__name__)
FETCHING_THREADS = 16


class BadRequest(Exception):
    """A request that asks for something that there is not; `param` is the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass
class Service:
    """A model behind its paths. `running` starts and stops what it needs."""

    settings: ServerSettings
    workers: Sequence[Worker]
    facts: Facts
    metrics: Metrics
    ready: bool = False

    def __post_init__(self) -> None:
        self.held = Held(self.settings.limits.held)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        about = self.settings
        self.batcher = Batcher(self.workers, about.batch_sizes, about.limits.queue, about.linger, self.metrics)
        self.labels = LabelEmbeddings(self.batcher.encode, min(about.batch_sizes["text"], about.limits.queue))
        self.fetcher = Fetcher(about.limits.body) if about.allow_urls else None
        # as many as may hold half of the memory when each is as large as it may be
        at_once = max(1, min(FETCHING_THREADS, about.limits.held // (2 * about.limits.body)))
        self.turns = asyncio.Semaphore(at_once)
        self.metrics.workers_ready.set_function(lambda: sum(worker.ready for worker in self.workers))
        self.started = int(time.time())
        self.batcher.start()
        for name, key in about.label_sets.items():
            registered = await self.labels.register(key)
            logger.info("label set %s: %d labels", name, len(registered))
            if registered.cut:
                logger.warning("label set %s: the text tower is too short for %d of them", name, len(registered.cut))
        self.ready = True
        with ThreadPoolExecutor(at_once, "fetch") as self.fetching:
            yield
        await self.batcher.stop()

    # ---- from inputs to outcomes

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.settings.name):
            message = f"there is no model of this name here, but {self.settings.name!r}"
            raise BadRequest(message, "model", 404, "model_not_found")

    def check_count(self, count: int, param: str) -> None:
        if count > self.settings.limits.items:
            raise BadRequest(f"more than {self.settings.limits.items} items in one request", param)

    async def item(self, given: Any, pictures: bool, share: Share) -> Item | str:
        """An item, or why there is none.

        Raises:
            QueueFull: there is no room for what is to be fetched.
        """
        try:
            found = to_item(given, self.settings.limits.characters, pictures=pictures)
            if isinstance(found, Item):
                return found
            return await self.fetch(found, share)
        except ValueError as error:
            return str(error)

    async def fetch(self, link: Link, share: Share) -> Item:
        if self.fetcher is None:
            raise ValueError("this server fetches no URLs: send the image as a data URI")
        async with self.turns:
            most, content = self.fetcher.max_bytes, b""
            if not share.take(most):
                raise QueueFull(1)
            try:
                content = await asyncio.get_running_loop().run_in_executor(self.fetching, self.fetcher, link.url)
            finally:
                share.give_back(most - len(content))
        return Item("image", content)

    async def outcomes(self, given: Sequence[Any], param: str, *, pictures: bool = False) -> list[Outcome]:
        """Of each input in order; what has none costs its place and nothing else.

        Raises:
            BadRequest: not one of them is good.
            QueueFull, WorkerLost: as `Batcher.encode`.
        """
        self.check_count(len(given), param)
        with self.held.share() as share:
            items = await asyncio.gather(*(self.item(one, pictures, share) for one in given))
            good = [item for item in items if isinstance(item, Item)]
            encoded = iter(await self.batcher.encode(good))
        found = [next(encoded) if isinstance(item, Item) else Outcome(None, error=item) for item in items]
        if all(outcome.embed is None for outcome in found):
            which = "" if len(found) == 1 else "none of the inputs can be used; the first: "
            raise BadRequest(f"{which}{found[0].error}", param, code="invalid_input")
        return found

    def answer(self, data: list[dict[str, Any]], outcomes: Sequence[Outcome], **fields: Any) -> dict[str, Any]:
        tokens = sum(outcome.length for outcome in outcomes)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.settings.name, "usage": usage, **fields}

    # ---- the paths

    async def embeddings(self, body: EmbeddingsRequest) -> dict[str, Any]:
        self.check_model(body.model)
        width = body.dimensions or self.facts.dimensions
        if width > self.facts.dimensions:
            raise BadRequest(f"the model's vectors have {self.facts.dimensions} dimensions", "dimensions")
        outcomes = await self.outcomes(listed(body.input), "input")
        data = [
            {"object": "embedding", "index": index, **embedding(outcome, width, body.encoding_format)}
            for index, outcome in enumerate(outcomes)
        ]
        return self.answer(data, outcomes)

    async def classify(self, body: ClassifyRequest) -> dict[str, Any]:
        self.check_model(body.model)
        pictures = listed(body.images)
        self.check_count(len(pictures), "images")
        labels, templates = key = self.label_key(body)
        try:
            known = await self.labels.of(key)
        except LabelError as error:
            raise BadRequest(str(error), "labels", code="invalid_input") from error
        outcomes = await self.outcomes(pictures, "images", pictures=True)
        function = body.function or self.facts.loss_type
        data = []
        for index, outcome in enumerate(outcomes):
            entry: dict[str, Any] = {"object": "classification", "index": index}
            if outcome.embed is None:
                entry |= {"labels": None, "error": outcome.error}
            else:
                row = logits(self.facts, cosines(outcome.embed[None], known.embeds))[0]
                entry["labels"] = ranked(row, labels, known.cut, function, body.top_k, body.threshold)
            data.append(entry)
        return self.answer(data, outcomes, function=function, templates=list(templates))

    def label_key(self, body: ClassifyRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if (body.labels is None) == (body.label_set is None):
            raise BadRequest("give labels, or the name of a label_set", "labels")
        if body.label_set is not None:
            if body.templates is not None:
                raise BadRequest("the templates of a label_set are those that it was registered with", "templates")
            if body.label_set not in self.settings.label_sets:
                known = ", ".join(self.settings.label_sets) or "none"
                raise BadRequest(f"no label set of this name; known: {known}", "label_set", 404, "label_set_not_found")
            return self.settings.label_sets[body.label_set]
        try:
            key = label_key(body.labels or (), body.templates)
        except ValueError as error:
            raise BadRequest(str(error), "labels") from error
        limits = self.settings.limits
        if len(key[0]) * len(key[1]) > limits.labels:
            raise BadRequest(f"more than {limits.labels} labels times templates in one request", "labels")
        if max(map(len, key[0] + key[1])) > limits.characters:
            raise BadRequest(f"a label has more than {limits.characters} characters", "labels")
        return key

    async def similarity(self, body: SimilarityRequest) -> dict[str, Any]:
        self.check_model(body.model)
        queries, documents = listed(body.queries), listed(body.documents)
        self.check_count(len(queries) + len(documents), "documents")
        outcomes = await self.outcomes(queries + documents, "documents")
        rows, columns = outcomes[: len(queries)], outcomes[len(queries) :]
        first, second = (np.stack([vector_or_nan(one, self.facts) for one in side]) for side in (rows, columns))
        found = cosines(first, second)
        are_texts = ([text_of(one) is not None for one in side] for side in (queries, documents))
        scores = probabilities(self.facts, found, *are_texts)
        errors = [{"index": place, "error": one.error} for place, one in enumerate(outcomes) if one.error is not None]
        data = [
            {"object": "similarity", "index": index, "cosines": numbers(of_query), "scores": numbers(of_pairs)}
            for index, (of_query, of_pairs) in enumerate(zip(found, scores))
        ]
        return self.answer(data, outcomes, errors=errors)

    def models(self) -> dict[str, Any]:
        about = {"object": "model", "created": self.started, "owned_by": "siglip-ext"}
        facts = {"dimensions": self.facts.dimensions, "label_sets": sorted(self.settings.label_sets)}
        return {"object": "list", "data": [{"id": self.settings.name, **about, **facts}]}


def probabilities(facts: Facts, found: np.ndarray, of_rows: list[bool], of_columns: list[bool]) -> np.ndarray:
    """That two inputs belong together, from their cosines (rows, columns); NaN where the model was not trained to say.

    The sigmoid loss tells of an image and a text, and of no other pair; the softmax loss tells of no pair alone.

    Args:
        of_rows, of_columns: whether they are texts.
    """
    if facts.loss_type != "sigmoid":
        return np.full_like(found, np.nan)
    return np.where(np.not_equal.outer(of_rows, of_columns), sigmoid(logits(facts, found)), np.nan)


def vector_or_nan(outcome: Outcome, facts: Facts) -> np.ndarray:
    return np.full(facts.dimensions, np.nan, np.float32) if outcome.embed is None else outcome.embed


def numbers(row: np.ndarray) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if np.isnan(value) else float(value) for value in row]


def embedding(outcome: Outcome, width: int, form: str) -> dict[str, Any]:
    """Truncated vectors are brought to unit length again."""
    if outcome.embed is None:
        return {"embedding": None, "error": outcome.error}
    vector = outcome.embed[:width]
    if width < len(outcome.embed):
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    cut = {"truncated": True} if outcome.cut else {}
    if form == "base64":
        return {"embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode(), **cut}
    return {"embedding": vector.astype(np.float32).tolist(), **cut}
