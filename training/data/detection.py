"""Regions of images by an open-vocabulary detector that is asked for words: OWL-ViT or OWLv2 of transformers.

SigLIP 2's boxes were found so (arXiv 2502.14786, section 2.2, after OWLv2, arXiv 2306.09683): a detector is asked for
n-grams of an image's caption and for fixed categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor, PreTrainedModel

from modeling_siglip_ext.evaluation.metrics.dense import box_iou

from .regions import word_ngrams


DETECTORS = ("owlvit", "owlv2")


@dataclass(frozen=True)
class DetectionSettings:
    """
    Args:
        categories: asked for in every image, beside the n-grams of its caption.
        longest: words of an n-gram at most (OWLv2: 10).
        min_score: boxes that the detector is less sure of are not kept (SigLIP 2 trains on those from 0.3).
        overlap: of two boxes that share more than this (IoU) the surer one is kept, with its words.
        most: boxes of an image.

    Raises:
        ValueError: a share that is none, or nothing to keep.
    """

    categories: tuple[str, ...] = ()
    longest: int = 10
    min_score: float = 0.1
    overlap: float = 0.5
    most: int = 100

    def __post_init__(self) -> None:
        for name in ("min_score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name, least in (("longest", 0), ("most", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def queries(self, captions: Sequence[str]) -> list[str]:
        """What the detector is asked for, each once."""
        asked = [words for caption in captions for words in word_ngrams(caption, self.longest)]
        return list(dict.fromkeys([*asked, *self.categories]))


class Detector:
    """An open-vocabulary detector.

    Args:
        name_or_path: folder or Hub name of an OWL-ViT or OWLv2.
        device: where it computes.

    Raises:
        ValueError: another kind of model.
    """

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu"):
        kind = AutoConfig.from_pretrained(name_or_path).model_type
        if kind not in DETECTORS:
            raise ValueError(f"{name_or_path} is a {kind}; regions are found by {' and '.join(DETECTORS)}")
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name_or_path)
        self.model: PreTrainedModel = model.to(device).eval()
        self.processor: Any = AutoProcessor.from_pretrained(name_or_path)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]], settings: DetectionSettings
    ) -> list[list[dict[str, Any]]]:
        """The regions of each image, the surest first: `{box, text, score}`, boxes in shares of width and height.

        Args:
            images: RGB.
            queries: what each is searched for; an image without any has no regions.
        """
        width = max((len(asked) for asked in queries), default=0)
        if not width:
            return [[] for _ in images]
        # images of one batch are asked for as many words; what fills up is never kept
        asked = [[*words, *[""] * (width - len(words))] for words in queries]
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.processor(
            text=asked, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        pixels = self.processor(images=list(images), return_tensors="pt")
        inputs = {**tokens, **pixels}
        outputs = self.model(**{name: values.to(self.model.device) for name, values in inputs.items()})
        sizes = [(image.height, image.width) for image in images]
        filler = torch.tensor([[not words for words in own] for own in asked], device=outputs.logits.device)
        outputs.logits = outputs.logits.masked_fill(filler[:, None], -torch.inf)
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=settings.min_score, target_sizes=sizes, text_labels=asked
        )
        return [self._regions(one, size, settings) for one, size in zip(found, sizes)]

    @staticmethod
    def _regions(found: dict[str, Any], size: tuple[int, int], settings: DetectionSettings) -> list[dict[str, Any]]:
        height, width = size
        boxes = found["boxes"].double().cpu().numpy() / np.array([width, height, width, height])
        boxes, scores = boxes.clip(0, 1), found["scores"].double().cpu().numpy()
        whole = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        regions = []
        for place in distinct(boxes, np.where(whole, scores, -1), settings.overlap)[: settings.most]:
            box = [round(side, 5) for side in boxes[place].tolist()]
            regions.append({"box": box, "text": found["text_labels"][place], "score": round(float(scores[place]), 5)})
        return regions


def distinct(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Places of the boxes that are kept, the surest first: each shares at most `overlap` with all before it.

    Args:
        boxes: (N, 4): left, top, right, bottom.
        scores: (N,); negative ones are not kept.
    """
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        others = boxes[kept]
        own = np.broadcast_to(boxes[place], others.shape)
        if scores[place] >= 0 and not (box_iou(own, others) > overlap).any():
            kept.append(int(place))
    return kept
