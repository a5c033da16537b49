"""Held-out figures of a run: retrieval, and zero-shot classification where the dataset has tasks."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from transformers import EvalPrediction, PreTrainedModel, ProcessorMixin

from modeling_siglip_ext.evaluation.data import EvaluationData
from modeling_siglip_ext.evaluation.evaluate import evaluate
from modeling_siglip_ext.evaluation.metrics.zero_shot import Task


RECALLED_AT = (1, 5)


def metric_names(tasks: Sequence[Task] = ()) -> list[str]:
    """The names of the figures that `HeldOutMetrics` gives."""
    ways = ("image_to_text", "text_to_image")
    return [f"{way}_recall@{k}" for way in ways for k in RECALLED_AT] + [f"zero_shot_{task.name}" for task in tasks]


class HeldOutMetrics:
    """`compute_metrics` for `SiglipExtTrainer`.

    Gives recall@1 and @5 both ways over the evaluation pairs, and `zero_shot_<task>`, the accuracy of each task.

    Args:
        model: the model in training; class prompts are embedded with it.
        processor: its processor.
        tasks: zero-shot tasks over the rows of the evaluation set.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, tasks: Sequence[Task] = ()):
        self.model = model
        self.processor = processor
        self.data = EvaluationData(tasks=tasks)
        self.names = metric_names(tasks)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures between 0 and 1 from (image_embeds, text_embeds), float arrays (N, D), text i of image i."""
        images, texts = cast(tuple[np.ndarray, np.ndarray], prediction.predictions)
        parts = self.model, self.processor, self.data
        result = evaluate(*parts, image_embeds=images, text_embeds=texts, ks=RECALLED_AT, batch_size=256)
        return dict(result.metrics)
