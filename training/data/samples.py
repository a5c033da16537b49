"""Samples that cannot be used: skipped, counted, and the end of the run when there are too many."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from modeling_siglip_ext.evaluation.data.tar_shards import TooManyBadSamples
from modeling_siglip_ext.images import UnreadableImageError
from modeling_siglip_ext.texts import check_characters


__all__ = [
    "BAD_SAMPLE",
    "GRACE",
    "LISTED",
    "ReportingCollator",
    "SkipCounter",
    "TooManyBadSamples",
    "UnusableRowError",
]
__all__ += ["as_captions", "captions_if_any", "drawn"]
logger = logging.getLogger(__name__)
Choice = TypeVar("Choice")


class UnusableRowError(ValueError):
    """A row without a usable caption, or without the columns of a sample."""


BAD_SAMPLE = (UnreadableImageError, UnusableRowError)

# One bad sample among the first ten is no sign of anything.
GRACE = 1000
LISTED = 20


class SkipCounter:
    """Counts samples and skipped ones, and raises when the share of the latter passes the limit.

    Args:
        limit: largest share of bad samples.
        grace: the share is taken of at least this many samples.
    """

    def __init__(self, limit: float, grace: int = GRACE):
        if not 0 <= limit <= 1:
            raise ValueError(f"max_bad_fraction must be between 0 and 1, got {limit}")
        self.limit, self.grace = limit, grace
        self.read = 0
        self.skipped: list[tuple[str, str]] = []
        self.total_skipped = 0

    def add(self, read: int, skipped: list[tuple[str, str]]) -> None:
        """
        Args:
            read: samples read, the skipped ones included.
            skipped: (name, reason) of each that was skipped.

        Raises:
            TooManyBadSamples: with the list.
        """
        self.read += read
        self.total_skipped += len(skipped)
        for name, reason in skipped:
            if len(self.skipped) < LISTED:
                self.skipped.append((name, reason))
                logger.warning("skipped a bad sample: %s: %s", name, reason)
        if skipped and self.total_skipped > self.limit * max(self.read, self.grace):
            listing = "\n".join(f"  {name}: {reason}" for name, reason in self.skipped)
            more = self.total_skipped - len(self.skipped)
            raise TooManyBadSamples(
                f"{self.total_skipped} of {self.read} samples are bad, more than max_bad_fraction={self.limit} "
                f"allows. Repair or remove them, or raise the limit:\n{listing}"
                + (f"\n  and {more} more" if more else "")
            )

    def state(self) -> dict:
        return {"read": self.read, "total_skipped": self.total_skipped, "skipped": self.skipped}

    def load(self, state: dict) -> None:
        self.read, self.total_skipped = state["read"], state["total_skipped"]
        self.skipped = [tuple(entry) for entry in state["skipped"]]


def as_captions(values: Any) -> list[str]:
    """The captions in a string, a list, a mapping from languages to either, or a mixture; empty ones left out.

    Raises:
        UnusableRowError: for anything else, and if no caption is left.
    """
    captions = [caption for caption in _texts(values) if caption.strip()]
    if not captions:
        raise UnusableRowError(f"no caption (got {values!r})")
    return captions


def captions_if_any(values: Any) -> list[str]:
    """The same; none of a row that training leaves out, or counts."""
    try:
        return as_captions(values)
    except UnusableRowError:
        return []


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        check_text(value)
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        raise UnusableRowError(f"a caption must be a string, a list of strings or a mapping of them, got {value!r}")
    return [text for part in value for text in _texts(part)]


def check_text(text: str) -> None:
    """
    Raises:
        UnusableRowError: a text that no tokenizer reads, as JSON can have it.
    """
    try:
        check_characters([text])
    except ValueError as error:
        raise UnusableRowError(str(error)) from error


def key_number(key: str) -> int:
    """A hash of the key below 2**64, from which all that is random in a sample is drawn."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def drawn(choices: Sequence[Choice], key: str) -> Choice:
    """One of the choices, by a hash of the key."""
    return choices[0] if len(choices) == 1 else choices[key_number(key) % len(choices)]


class ReportingCollator:
    """Passes samples on to another collator, and what they say about themselves into `batch["samples"]`.

    A sample may carry `"sample"`: {"name", "read", "skipped", "position"}; see `ImageTextDataset` and
    `ImageTextStream`. None in place of a list of samples is a batch that a resumed run has already seen.
    """

    def __init__(self, collator: Callable[[list[dict]], dict]):
        self.collator = collator

    def __call__(self, examples: list[dict] | None) -> dict:
        if examples is None:
            return {}
        notes = [example["sample"] for example in examples if isinstance(example, dict) and "sample" in example]
        batch = self.collator(examples)
        if notes:
            batch["samples"] = {
                "names": [note["name"] for note in notes],
                "read": sum(note["read"] for note in notes),
                "skipped": [entry for note in notes for entry in note["skipped"]],
                "position": notes[-1].get("position"),
            }
        return batch
