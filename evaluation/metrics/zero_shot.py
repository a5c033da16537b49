"""Zero-shot classification: classes are texts; templates are ensembled as in CLIP (arXiv 2103.00020, sec. 3.1.4)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


# Matrix products round by position, so equal embeddings may differ by some units in the last place of a cosine.
_TIE = 1e-6


@dataclass(frozen=True)
class ZeroShotTask:
    """One classification task over rows of a dataset, with the same prompts for every image.

    Args:
        name: of the task.
        class_names: for people.
        prompts: one list of texts a class, for the model.
        rows: indices of the dataset's rows that take part.
        labels: the class of each of these rows.
    """

    name: str
    class_names: Sequence[str]
    prompts: Sequence[Sequence[str]]
    rows: Sequence[int]
    labels: Sequence[int]

    def __post_init__(self):
        if len(self.class_names) != len(self.prompts):
            raise ValueError(
                f"task {self.name!r}: {len(self.class_names)} classes but prompts for {len(self.prompts)}"
            )
        if len(self.rows) != len(self.labels):
            raise ValueError(f"task {self.name!r}: {len(self.rows)} rows but {len(self.labels)} labels")


@dataclass(frozen=True)
class ForcedChoiceTask:
    """One task in which every image has candidate texts of its own, of which one is right.

    Args:
        name: of the task.
        class_names: for people, one for each place among the candidates.
        choices: the candidate texts of each row, as many as there are classes.
        rows: indices of the dataset's rows that take part.
        labels: which candidate is right.
    """

    name: str
    class_names: Sequence[str]
    choices: Sequence[Sequence[str]]
    rows: Sequence[int]
    labels: Sequence[int]

    def __post_init__(self):
        if not len(self.rows) == len(self.labels) == len(self.choices):
            raise ValueError(
                f"task {self.name!r}: {len(self.rows)} rows, {len(self.labels)} labels, {len(self.choices)} choices"
            )
        wrong = [row for row, texts in zip(self.rows, self.choices) if len(set(texts)) != len(self.class_names)]
        if wrong:
            raise ValueError(
                f"task {self.name!r}: row {wrong[0]} has not {len(self.class_names)} different candidates"
            )


Task = ZeroShotTask | ForcedChoiceTask


def fill_templates(class_names: Iterable[str], templates: Sequence[str]) -> list[list[str]]:
    """Every class name in every template; raises ValueError for a template without "{}"."""
    without = [template for template in templates if "{}" not in template]
    if without or not templates:
        raise ValueError(f"templates must contain '{{}}' for the class name: {without or 'none given'}")
    return [[template.replace("{}", name) for template in templates] for name in class_names]


def class_embeddings(
    embed: Callable[[list[str]], torch.Tensor], prompts: Sequence[Sequence[str]], *, batch_size: int = 256
) -> torch.Tensor:
    """One embedding a class: the mean of its prompts' normalised embeddings, normalised again.

    Args:
        embed: texts to embeddings (texts, D); called on at most `batch_size` texts, each distinct text once.
        prompts: one list of texts a class (`fill_templates`).

    Returns:
        (classes, D), each row of unit length.

    Raises:
        ValueError: a class without prompts.
    """
    empty = [i for i, texts in enumerate(prompts) if not texts]
    if empty or not prompts:
        raise ValueError(f"classes without prompts: {empty or 'all'}")
    distinct = list(dict.fromkeys(text for texts in prompts for text in texts))
    batches = [distinct[i : i + batch_size] for i in range(0, len(distinct), batch_size)]
    embeds = F.normalize(torch.cat([embed(batch) for batch in batches]).float(), dim=-1)
    place = {text: i for i, text in enumerate(distinct)}
    means = [embeds[[place[text] for text in texts]].mean(0) for texts in prompts]
    return F.normalize(torch.stack(means), dim=-1)


def forced_choice_accuracy(
    embed: Callable[[list[str]], torch.Tensor], image_embeds: torch.Tensor, task: ForcedChoiceTask
) -> float:
    """Share of images whose right candidate scores above all the others; ties count against the model.

    Args:
        embed: texts to embeddings (texts, D).
        image_embeds: (rows of the task, D), normalised.
    """
    # as single-prompt classes, which embeds each distinct text once and normalises
    distinct = list(dict.fromkeys(text for texts in task.choices for text in texts))
    embeds = class_embeddings(embed, [[text] for text in distinct]).to(image_embeds)
    place = {text: i for i, text in enumerate(distinct)}
    candidates = embeds[torch.tensor([[place[text] for text in texts] for texts in task.choices])]
    scores = torch.einsum("nd,ncd->nc", image_embeds.float(), candidates.float())
    labels = torch.as_tensor(task.labels, device=scores.device)[:, None]
    others = scores.scatter(1, labels, -torch.inf).amax(dim=1)
    return (scores.gather(1, labels)[:, 0] > others + _TIE).double().mean().item()


def first_of_same(prompts: Sequence[Sequence[str]]) -> list[int]:
    """For each class the first class with the same prompts: ImageNet has two pairs of classes of one name."""
    first: dict[tuple[str, ...], int] = {}
    return [first.setdefault(tuple(texts), place) for place, texts in enumerate(prompts)]


def zero_shot_ranks(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: Sequence[Sequence[int]],
    *,
    first_of: Sequence[int] | None = None,
) -> torch.Tensor:
    """How many wrong classes stand before the best right class of each image, (N,) int64 on the CPU.

    A wrong class that scores as high as the right one (within 1e-6), or is not a number, stands before it.

    Args:
        image_embeds: (N, D), normalised.
        class_embeds: (C, D), normalised.
        labels: the right classes of each image, 0 to C - 1, at least one.
        first_of: for each class the first with the same prompts. Between such classes the first wins, as with the
            argmax of the papers; otherwise neither could ever be right.

    Raises:
        ValueError: shapes or labels that do not fit, an image without a right class, or no images.
    """
    classes = len(class_embeds)
    if len(labels) != len(image_embeds) or not len(labels):
        raise ValueError(f"labels of {len(labels)} images for {len(image_embeds)} images")
    counts = torch.tensor([len(own) for own in labels])
    if (counts == 0).any():
        raise ValueError(f"image {int((counts == 0).nonzero()[0])} has no right class: drop such images first")
    flat = torch.tensor([label for own in labels for label in own])
    if ((flat < 0) | (flat >= classes)).any():
        raise ValueError(f"labels must lie within 0 and {classes - 1}")
    right = torch.zeros(len(labels), classes, dtype=torch.bool)
    right[torch.arange(len(labels)).repeat_interleave(counts), flat] = True
    excused = right
    if first_of is not None:
        first = torch.as_tensor(first_of)
        excused = right | (right[:, first] & (first != torch.arange(classes)))
    ranks = []
    for images, own, free in zip(image_embeds.float().split(4096), right.split(4096), excused.split(4096)):
        scores = (images @ class_embeds.to(images).T).cpu()
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        best = torch.where(torch.isnan(scores).any(1, keepdim=True), torch.nan, best)
        ranks.append((~(scores < best - _TIE) & ~free).sum(1))
    return torch.cat(ranks)


def accuracies(ranks: torch.Tensor, classes: int, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """ "accuracy@k" for each k below the number of classes."""
    return {f"accuracy@{k}": (ranks < k).double().mean().item() for k in ks if k < classes}


def zero_shot_metrics(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: torch.Tensor | Sequence[int],
    *,
    ks: Sequence[int] = (1, 5),
    first_of: Sequence[int] | None = None,
) -> dict[str, float]:
    """Accuracies between 0 and 1. Ties count against the model, as in `retrieval_ranks`.

    Args:
        image_embeds: (N, D), normalised.
        class_embeds: (C, D), normalised.
        labels: (N,) the class, 0 to C - 1, of each image.
        first_of: as in `zero_shot_ranks`.

    Returns:
        "accuracy@k" for each k below the number of classes, and "mean_per_class_recall": the mean over the classes
        that occur of the share of their images put first.

    Raises:
        ValueError: shapes or labels that do not fit, or no images.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
    classes = len(class_embeds)
    if labels.shape != (len(image_embeds),) or not len(labels):
        raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(image_embeds)} images")
    ranks = zero_shot_ranks(image_embeds, class_embeds, labels[:, None].tolist(), first_of=first_of)
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels, weights=(ranks == 0).double(), minlength=classes)
    recall = (hits[count > 0] / count[count > 0]).mean().item()
    return {**accuracies(ranks, classes, ks), "mean_per_class_recall": recall}
