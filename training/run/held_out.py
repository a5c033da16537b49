"""Held-out figures of a run: retrieval, and zero-shot classification where the dataset has tasks."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import EvalPrediction, ProcessorMixin

from modeling_siglip_ext.evaluation.embed import embed_texts
from modeling_siglip_ext.evaluation.metrics.retrieval import retrieval_metrics
from modeling_siglip_ext.evaluation.metrics.zero_shot import (
    ForcedChoiceTask,
    ZeroShotTask,
    class_embeddings,
    forced_choice_accuracy,
    zero_shot_metrics,
)


class HeldOutMetrics:
    """`compute_metrics` for `SiglipExtTrainer`.

    Gives recall@1 and @5 both ways over the evaluation pairs, and `zero_shot_<task>`, the accuracy of each task.

    Args:
        model: the model in training; class prompts are embedded with it.
        processor: its processor.
        max_length: tokens per text.
        tasks: zero-shot tasks over the rows of the evaluation set.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: ProcessorMixin,
        max_length: int,
        tasks: Sequence[ZeroShotTask | ForcedChoiceTask] = (),
    ):
        self.model = model
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.tasks = list(tasks)

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (texts, D) of full-length texts, normalised."""
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )
        return embed_texts(self.model, [dict(tokens)])

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures between 0 and 1 from (image_embeds, text_embeds), float arrays (N, D)."""
        images, texts = (torch.from_numpy(array) for array in prediction.predictions)
        metrics = retrieval_metrics(images, texts, ks=(1, 5))
        for task in self.tasks:
            part = images[torch.tensor(task.rows)]
            if isinstance(task, ForcedChoiceTask):
                accuracy = forced_choice_accuracy(self.embed, part, task)
            else:
                classes = class_embeddings(self.embed, task.prompts)
                accuracy = zero_shot_metrics(part, classes, task.labels, ks=(1,))["accuracy@1"]
            metrics[f"zero_shot_{task.name}"] = accuracy
        return metrics
