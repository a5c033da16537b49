"""Class names and prompt templates of the papers; where they are from is in README.md beside them."""

import json
import re
import string
from functools import lru_cache
from pathlib import Path


_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache
def _read(name: str):
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def imagenet_classes() -> list[str]:
    """The 1,000 names of ImageNet's classes in the order of the labels, as curated for CLIP."""
    return list(_read("imagenet_classes.json"))


def templates(name: str) -> list[str]:
    """ "clip_paper": CLIP's 80 and "{}"; "clip_best": 7 of them and "{}"; "none": "{}" alone.

    Raises:
        ValueError: an unknown name.
    """
    known = _read("templates.json")
    if name not in known:
        raise ValueError(f"templates {name!r} are unknown; choose one of {', '.join(known)}, or give a file")
    return list(known[name])


def canonicalize(text: str) -> str:
    """Lower case, without ASCII punctuation, single spaces; "{}" stays (big_vision, `prompt_engineering.py`)."""
    parts = text.replace("_", " ").lower().split("{}")
    return re.sub(r"\s+", " ", "{}".join(part.translate(_PUNCTUATION) for part in parts)).strip()
