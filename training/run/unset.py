"""`--group_column none`: a field that a recipe sets can be unset on the command line."""

from collections.abc import Collection, Sequence
from typing import Any


WORDS = ("", "none", "null")
# What a run begins with and where it ends: an empty word is a variable of the shell that nobody set.
PLACES = (
    "model_name_or_path", "vision_name_or_path", "text_name_or_path", "tokenizer_name_or_path", "dataset",
    "image_embeddings", "output_dir",
)  # fmt: skip


def is_unset(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in WORDS


def check_places(words: Sequence[str]) -> None:
    """
    Raises:
        ValueError: a place is an empty word.
    """
    for word, following in zip(words, [*words[1:], "none"]):
        name, equals, value = word.partition("=")
        empty = not (value if equals else following).strip()
        if empty and name.startswith("--") and name.removeprefix("--") in PLACES:
            raise ValueError(f"{name} is empty: give a value, or none to unset it")


def take_out_unset(words: Sequence[str], optional: Collection[str]) -> tuple[list[str], list[str]]:
    """Take the fields out of the words of a command line that are to be unset.

    Args:
        words: with the names of options in underscores.
        optional: names of the fields that may be None.

    Returns:
        The other words, and the names of the fields.
    """
    kept: list[str] = []
    unset: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        field = name.removeprefix("--")
        alone = not equals and rest and is_unset(rest[0]) and all(word.startswith("--") for word in rest[1:2])
        if name.startswith("--") and field in optional and (alone or (equals and is_unset(value))):
            del rest[: 1 if alone else 0]
            kept = without(kept, name)
            unset.append(field)
        else:
            kept.append(word)
    return kept, unset


def without(words: Sequence[str], option: str) -> list[str]:
    """The words of a command line but for an option and its values: what is said of it later holds."""
    kept, inside = [], False
    for word in words:
        if word.startswith("--"):
            inside = word.partition("=")[0] == option
        if not inside:
            kept.append(word)
    return kept
