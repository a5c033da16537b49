"""Zero-shot classification, retrieval and probes as in the SigLIP papers."""

if __name__ == "evaluation":
    raise ImportError(
        "this room is imported as modeling_siglip_ext.evaluation; run `pip install -e .` in the repository first"
    )

from modeling_siglip_ext.search_index import open_index

from .data import Classes, EvaluationData, select
from .evaluate import evaluate
from .metrics.duplicates import find_duplicates
from .metrics.probes import few_shot_metrics, knn, linear_probe
from .metrics.retrieval import retrieval_metrics
from .metrics.zero_shot import ForcedChoiceTask, ZeroShotTask, class_embeddings, zero_shot_metrics
from .results import Result, write_result


__all__ = [
    "Classes",
    "EvaluationData",
    "ForcedChoiceTask",
    "Result",
    "ZeroShotTask",
    "class_embeddings",
    "evaluate",
    "few_shot_metrics",
    "find_duplicates",
    "knn",
    "linear_probe",
    "open_index",
    "retrieval_metrics",
    "select",
    "write_result",
    "zero_shot_metrics",
]
