"""The bundled dataset: emoji, their names in 34 languages, a split that asks for generalisation, zero-shot tasks."""

from .loader import LANGUAGES, load_emoji, load_split


__all__ = ["LANGUAGES", "load_emoji", "load_split"]
