"""Regions of an image, a box and a text each, as they stand beside its caption: `regions: [{box, text, score}]`.

SigLIP 2 lets an open-vocabulary detector find them, asked for word n-grams of the caption and for fixed categories.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modeling_siglip_ext.captioning import Box, checked_box

from .samples import UnusableRowError, check_text


@dataclass(frozen=True)
class Region:
    """
    Args:
        box: left, top, right, bottom, as shares of the image's width and height.
        text: what is there.
    """

    box: Box
    text: str


def as_regions(values: Any, min_score: float = 0.3) -> list[Region]:
    """The regions in a row's field that its detector is sure enough of.

    Args:
        values: a list of mappings with `box`, `text` and perhaps `score`; the same as a mapping of lists, which is how
            older versions of `datasets` give it; None for no regions.
        min_score: those with a lower score are left out (LocCa: 0.3); without a score a region counts.

    Raises:
        UnusableRowError: for anything else, an empty text, or a box that is not within the image.
    """
    return [_region(entry) for entry in _entries(values) if _score(entry) >= min_score]


def check_regions(values: Any) -> None:
    """Whether all regions in a row's field are such, those that a lower `min_score` would take among them.

    Raises:
        UnusableRowError: see `as_regions`.
    """
    as_regions(values, min_score=-float("inf"))


def _entries(values: Any) -> Iterable[Mapping[str, Any]]:
    if values is None:
        return []
    if isinstance(values, Mapping):
        columns = {name: column for name, column in values.items() if column is not None}
        if not all(isinstance(column, list) for column in columns.values()) or len({*map(len, columns.values())}) > 1:
            raise UnusableRowError(f"regions must be a list of mappings, got {values!r}")
        return [dict(zip(columns, row)) for row in zip(*columns.values())]
    if not isinstance(values, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in values):
        raise UnusableRowError(f"regions must be a list of mappings, got {values!r}")
    return values


def _score(entry: Mapping[str, Any]) -> float:
    score = entry.get("score")
    if score is None:
        return float("inf")
    if not isinstance(score, (int, float)):
        raise UnusableRowError(f"the score of a region must be a number, got {score!r}")
    return score


def _region(entry: Mapping[str, Any]) -> Region:
    text = entry.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UnusableRowError(f"a region needs a text, got {dict(entry)!r}")
    check_text(text)
    if entry.get("box") is None:
        raise UnusableRowError(f"a region needs a box, got {dict(entry)!r}")
    try:
        return Region(checked_box(entry["box"]), text)
    except ValueError as error:
        raise UnusableRowError(f"region {text!r}: {error}") from error


def word_ngrams(text: str, longest: int = 10) -> list[str]:
    """What a detector is asked for: every run of up to `longest` words of a text, each once, short ones first.

    As OWLv2 (arXiv 2306.09683) takes them from alt-texts, without parsing.
    """
    words = text.split()
    runs = (
        " ".join(words[start : start + length])
        for length in range(1, min(longest, len(words)) + 1)
        for start in range(len(words) - length + 1)
    )
    return list(dict.fromkeys(runs))
