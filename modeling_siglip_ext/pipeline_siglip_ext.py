"""Zero-shot image classification in which labels cost nothing once they were seen.

The stock pipeline runs the text tower over all labels with every batch of images. Here a set of labels is embedded
once and kept. Importing the package puts a dispatcher behind "zero-shot-image-classification" that serves SigLIP
models with this pipeline and every other model with the stock one.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedModel, ZeroShotImageClassificationPipeline
from transformers.utils import logging

from .cpu_products import fast_products
from .image_budget import ImageBudget, with_length
from .images import UnreadableImageError, load_image
from .inputs import inputs_of
from .texts import text_config, tokenize, warn_of_cut


logger = logging.get_logger(__name__)

TASK = "zero-shot-image-classification"
DEFAULT_TEMPLATE = "This is a photo of {}."
# Rows of class embeddings kept: 100 MB at width 512, 150 MB at 768. The latest set is kept whatever its size.
CACHE_ROWS = 50_000
TEXT_BATCH = 64
Rows = TypeVar("Rows", bound=Sized)


@dataclass(frozen=True)
class Numbered:
    """An image of a list or a dataset, with its place there."""

    index: int
    image: Any


class NumberedDataset(Dataset):
    """The items of a dataset with their places."""

    def __init__(self, dataset: Dataset):
        self.dataset: Any = dataset  # one with a length

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Numbered:
        return Numbered(index, self.dataset[index])


class RowCache(Generic[Rows]):
    """Tensors, or others with a length, by key: the least recently used dropped first, with at most `limit` rows in
    all; safe under threads."""

    def __init__(self, limit: int):
        self.limit = limit
        self.kept: OrderedDict[Hashable, Rows] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Hashable) -> Rows | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def put(self, key: Hashable, rows: Rows) -> None:
        with self.lock:
            self.kept[key] = rows
            self.kept.move_to_end(key)
            while len(self.kept) > 1 and sum(map(len, self.kept.values())) > self.limit:
                self.kept.popitem(last=False)


def weights_version(model: PreTrainedModel) -> int:
    """Changes whenever the text tower's weights are replaced, moved, cast or updated in place."""
    # an exported model has neither, and stays what it is
    modules: tuple[Any, Any] = (getattr(model, "text_model", None), getattr(model, "text_adapter", None))
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    return hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters))


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    found = () if isinstance(labels, str) else tuple(inputs_of(labels, None, "text").items)
    if isinstance(labels, str) or not all(isinstance(label, str) for label in found):
        raise TypeError(f"candidate_labels must be a list of strings, not {labels!r:.200}")
    if not found:
        raise ValueError("candidate_labels is empty: give at least one label")
    repeated = [label for label, count in Counter(found).items() if count > 1]
    if repeated:
        raise ValueError(f"candidate_labels has duplicates: {', '.join(map(repr, repeated[:10]))}")
    return found


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise ValueError(f"hypothesis_template must contain '{{}}' for the label: {wrong or 'none given'}")
    return templates


class SiglipExtZeroShotImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """Zero-shot image classification with SigLIP models, stock or ours.

    Label sets are embedded once and kept in a bounded cache that follows the model's weights. Texts have the length
    of the model's text tower. One pipeline may be used by several threads.

    Example:

    ```python
    from transformers import pipeline

    import modeling_siglip_ext

    classify = pipeline("zero-shot-image-classification", model="google/siglip2-base-patch16-224")
    classify(["a.jpg", "b.jpg"], candidate_labels=["cat", "dog"], hypothesis_template=["a {}.", "a photo of a {}."])
    ```"""

    model: Any  # ours or a stock one
    tokenizer: Any
    image_processor: Any

    def __init__(self, *args, cache_rows: int = CACHE_ROWS, **kwargs):
        self._classes: RowCache[torch.Tensor] = RowCache(cache_rows)
        # the tokenizers library refuses a change of padding or truncation while another thread encodes; and of two
        # threads with the same new labels one waits for the other's embeddings
        self._text_lock = threading.Lock()
        super().__init__(*args, **kwargs)
        if self.tokenizer is None or self.image_processor is None:
            raise ValueError("the pipeline needs a tokenizer and an image processor; the model's folder has only one")

    def check_model_type(self, supported_models: Any) -> None:
        """As in transformers, which knows no exported models."""
        if isinstance(self.model, torch.nn.Module):
            super().check_model_type(supported_models)

    def _sanitize_parameters(
        self,
        tokenizer_kwargs: dict | None = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] | None = None,
        function_to_apply: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        timeout: float | None = None,
        max_num_patches: int | None = None,
        upscale: bool | None = None,
        **unknown,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(f"unknown arguments: {', '.join(unknown)}")
        if tokenizer_kwargs:
            raise ValueError("tokenizer_kwargs is not supported: padding and length are those of the model's texts")
        if function_to_apply not in (None, "sigmoid", "softmax"):
            raise ValueError(f"function_to_apply={function_to_apply!r}; choose 'sigmoid' or 'softmax'")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        forward: dict[str, Any] = {}
        after: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "function_to_apply": function_to_apply}
        if candidate_labels is not None:
            forward["labels"] = after["labels"] = check_labels(candidate_labels)
        if hypothesis_template is not None:
            forward["templates"] = check_templates(hypothesis_template)
        before: dict[str, Any] = {"timeout": timeout, "max_num_patches": max_num_patches, "upscale": upscale}
        before, after = ({k: v for k, v in given.items() if v is not None} for given in (before, after))
        # `preprocess` runs in a DataLoader's workers, where an error would come late
        ImageBudget(max_num_patches, upscale is not False).check(self.image_processor)
        return before, forward, after

    def __call__(self, image: Any = None, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """
        Args:
            image: One image or a list, batch, table, generator or dataset of them, as in `encode_images`.
            candidate_labels: Labels, each once. May also be given to `pipeline(...)`, as may the arguments below.
            hypothesis_template: One text with "{}" for the label, or several, whose embeddings are averaged.
            function_to_apply: "sigmoid", one probability a label, or "softmax" over the labels. By default what the
                model was trained with: sigmoid for SigLIP.
            top_k: Only so many labels an image, the best ones.
            threshold: Only labels with at least this score.
            timeout: Seconds to wait for a URL.
            max_num_patches, upscale: For NaFlex, as in `encode_images`.
            batch_size: Images in one forward pass; 1 by default, as in all pipelines.

        Returns:
            For one image a list of `{"score": float, "label": str}`, best first; for several a list of such lists, for
            a stream or a dataset an iterator over them. An image of several that cannot be read gives an empty list
            and a warning with its index.

        Raises:
            ValueError: No labels or duplicate ones, a template without "{}", or a single image that cannot be read.
        """
        image = kwargs.pop("images", image)
        if image is None:
            raise ValueError("Cannot call the zero-shot-image-classification pipeline without an images argument!")
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        elif "labels" not in self._forward_params:
            raise ValueError("candidate_labels is missing: give at least one label")
        if isinstance(image, Dataset) and not isinstance(image, IterableDataset):
            given: Any = NumberedDataset(image)
        else:
            found = inputs_of(image)
            numbered = (Numbered(index, item) for index, item in enumerate(found.items))
            if found.single:
                given = next(numbered).image
            elif found.count is None or hasattr(image, "select_columns"):  # a stream or a data set gives a stream
                given = numbered
            else:
                given = list(numbered)
                if not given:
                    return []
        return super(ZeroShotImageClassificationPipeline, self).__call__(given, **kwargs)

    # labels are no input of an image here: `_forward` gets them, and embeds them once
    def preprocess(  # ty: ignore[incompatible-method-override]  # parameters by name, as every pipeline's
        self, image: Any, timeout: float | None = None, max_num_patches: int | None = None, upscale: bool = True
    ) -> dict[str, torch.Tensor]:
        """One image to the inputs of the image tower, and whether it could be read."""
        numbered = isinstance(image, Numbered)
        readable = True
        try:
            loaded = load_image(image.image if numbered else image, timeout)
        except UnreadableImageError as error:
            if not numbered:
                raise
            logger.warning("image %d cannot be read and gets no labels: %s", image.index, error)
            loaded, readable = Image.new("RGB", (32, 32)), False
        budget = ImageBudget(max_num_patches, upscale)
        inputs = budget.prepare(self.image_processor, loaded)
        if not upscale:  # images of several lengths could not be put into one batch
            inputs = with_length(inputs, budget.longest(self.image_processor))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return {**inputs, "readable": torch.tensor([readable])}

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        labels: tuple[str, ...] = (),
        templates: tuple[str, ...] = (DEFAULT_TEMPLATE,),
    ) -> dict[str, torch.Tensor]:
        readable = model_inputs.pop("readable")
        with fast_products():
            classes = self.class_embeddings(labels, templates)
            pooled = self.model.get_image_features(**model_inputs).pooler_output
        images = F.normalize(pooled.float(), dim=-1)
        logits = images @ classes.to(images.device).T * self.model.logit_scale.float().exp().to(images.device)
        if getattr(self.model, "logit_bias", None) is not None:
            logits = logits + self.model.logit_bias.float().to(images.device)
        return {"logits": logits, "readable": readable}

    def class_embeddings(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
        """(labels, D) float32, of unit length: the mean over the templates of normalised embeddings, normalised."""
        key = (labels, templates, weights_version(self.model))
        found = self._classes.get(key)
        if found is None:
            with self._text_lock, torch.no_grad():
                found = self._classes.get(key)
                if found is None:
                    found = self._embed_classes(labels, templates)
                    self._classes.put(key, found)
        return found

    def _embed_classes(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
        texts = [template.replace("{}", label) for label in labels for template in templates]
        embeds, cut = [], []
        for start in range(0, len(texts), TEXT_BATCH):
            inputs, long = tokenize(self.tokenizer, self.model, texts[start : start + TEXT_BATCH])
            cut += long
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            embeds.append(F.normalize(self.model.get_text_features(**inputs).pooler_output.float(), dim=-1))
        warn_of_cut(cut, text_config(self.model).max_position_embeddings)
        means = torch.cat(embeds).unflatten(0, (len(labels), len(templates))).mean(1)
        return means if len(templates) == 1 else F.normalize(means, dim=-1)

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        labels: tuple[str, ...] = (),
        function_to_apply: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Labels with their scores, best first; of equal scores the earlier label first."""
        if not model_outputs["readable"].item():
            return []
        logits = model_outputs["logits"][0]
        if function_to_apply is None:
            function_to_apply = getattr(self.model.config, "loss_type", "sigmoid")
        scores = logits.sigmoid() if function_to_apply == "sigmoid" else logits.softmax(-1)
        order = logits.argsort(descending=True, stable=True)[:top_k].tolist()
        scores = scores.tolist()
        found = [{"score": scores[place], "label": labels[place]} for place in order]
        return found if threshold is None else [row for row in found if row["score"] >= threshold]
