"""Recall and accuracy of an export on a data set: the one place where conversion looks into evaluation."""

from typing import Any

from ..export.figures import Evaluate


def evaluation_of(dataset: str, limit: int | None) -> Evaluate:
    """What measures a model on a data set: retrieval where there are captions, else zero-shot classification.

    Args:
        dataset: name on the Hub, file or folder.
        limit: only the first rows.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a data set without captions and classes.
    """
    from modeling_siglip_ext.evaluation import evaluate, select  # needs the extra `eval`

    data = select(dataset, limit=limit)

    def measure(model: Any, processor: Any) -> dict[str, float]:
        metrics = evaluate(model, processor, data).metrics
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return measure
