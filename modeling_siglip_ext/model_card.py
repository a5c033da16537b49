"""Model cards: one writer for training, conversion and evaluation, with templates from `model_cards/`.

The metadata block follows the Hub's rules (huggingface_hub writes and checks it); figures appear in it as
`model-index`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData


@dataclass(frozen=True)
class Figure:
    """One measured figure of a model.

    Args:
        label: what a reader calls it, e.g. "image→text R@1".
        metric: identifier for the metadata, e.g. "image_to_text_recall@1".
        value: the figure; shares are between 0 and 1.
        chance: what guessing gives, where that is known.
        percent: whether the card shows `value` and `chance` in percent.
    """

    label: str
    metric: str
    value: float
    chance: float | None = None
    percent: bool = True

    def text(self, value: float | None) -> str:
        """`value` as the card shows it."""
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3f}"


def write_model_card(
    folder: str | Path,
    template: str,
    *,
    name: str,
    figures: Sequence[Figure] = (),
    dataset: str | None = None,
    dataset_id: str | None = None,
    split: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    languages: Sequence[str] = (),
    tags: Sequence[str] = (),
    **values,
) -> Path:
    """Write `README.md` into a model folder.

    Args:
        folder: the model folder.
        template: name of a template of `model_cards`, without `.md`.
        name: the model's name, for the title and `model-index`.
        figures: measured figures, for the table and `model-index`.
        dataset: name of the dataset the figures were measured on; needed with figures.
        dataset_id: its identifier on the Hub, or a short identifier of its own.
        split: the split they were measured on.
        license: Hub identifier of the licence of the weights.
        base_model: the checkpoint that was fine-tuned or converted.
        languages: language codes.
        tags: beside "siglip".
        values: further variables of the template.

    Returns:
        Path of the card.

    Raises:
        ValueError: figures without the dataset they were measured on.
        jinja2.UndefinedError: a variable of the template that was not given.

    Example:
        >>> write_model_card("out", "trained", name="my-siglip", ...)  # doctest: +SKIP
    """
    if figures and not (dataset and dataset_id):
        raise ValueError(
            "figures need `dataset` and `dataset_id`: a figure says nothing without what it was measured on"
        )
    results = [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Image-text retrieval and zero-shot classification",
            dataset_type=dataset_id,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=figure.metric,
            metric_name=figure.label,
            metric_value=round(figure.value, 6),
        )
        for figure in figures
    ]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=base_model,
        datasets=[dataset_id] if dataset_id and "/" in dataset_id else None,
        language=list(languages) or None,
        tags=["siglip", *tags],
        model_name=name if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    body = environment.get_template(template).render(
        name=name, figures=figures, dataset=dataset, split=split, license=license, base_model=base_model, **values
    )
    path = Path(folder) / "README.md"
    draft = path.with_name("README.md.part")
    draft.write_text(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")), encoding="utf-8")
    os.replace(draft, path)
    return path


def _template(name: str) -> str:
    return resources.files("modeling_siglip_ext.model_cards").joinpath(f"{name}.md").read_text("utf-8")
