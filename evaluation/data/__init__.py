"""What a model is evaluated on: rows in any of the usual layouts, and which of their columns say what."""

from .evaluation_data import Classes, EvaluationData, Provenance
from .languages import select_languages
from .layouts import load
from .selection import select


__all__ = ["Classes", "EvaluationData", "Provenance", "load", "select", "select_languages"]
