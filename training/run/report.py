"""What a run leaves beside the weights: pictures, the card, and some held-out images to try the model on."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from PIL import Image
from transformers import TrainerState
from transformers.utils import logging

from modeling_siglip_ext.evaluation.pictures.loss_curve import loss_curve
from modeling_siglip_ext.evaluation.pictures.retrieval_sheet import retrieval_contact_sheet
from modeling_siglip_ext.files import new_folder, write_json
from modeling_siglip_ext.hub.card import Card, write_card
from modeling_siglip_ext.hub.facts import CAPTIONS, HELD_OUT, example_of, facts_of
from modeling_siglip_ext.hub.results import Figure, Results, today
from modeling_siglip_ext.images import load_image

from ..components.card import LIMITS, training_text
from ..data.dataset import CaptionedRows
from ..data.facts import Task
from .objective_fields import REFERENCE, REFERENCE_EMBEDDINGS
from .prepare import Run
from .recipe import Recipe


logger = logging.get_logger(__name__)
SHEET_QUERIES = 8
SAMPLES = 8
MAX_CAPTIONS = 1000


def write_run_report(run: Run, metrics: Mapping[str, float], embeddings: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Write `loss_curve.png`, and with an evaluation set `retrieval.png`, `held_out/` and figures, then `README.md`.

    Args:
        run: the finished run.
        metrics: held-out figures, without prefix.
        embeddings: (image_embeds, text_embeds) of the evaluation set, float arrays (N, D).
    """
    trainer, data, rows, folder = run.trainer, run.recipe.data, run.rows, run.folder
    about, name = rows.about, folder.resolve().name
    pictures = {}
    if any("loss" in entry for entry in trainer.state.log_history):  # a run can end before the first log
        loss_curve(folder / "loss_curve.png", _with_final_figures(trainer.state, metrics), title=name)
        pictures["Loss and held-out recall over training"] = "loss_curve.png"
    measured = []
    if embeddings is not None and rows.held_out is not None:
        captions = _held_out_captions(run)
        write_samples(rows.held_out[data.image_column], captions, folder / HELD_OUT)
        images, texts = (torch.from_numpy(array) for array in embeddings)
        retrieval_contact_sheet(
            folder / "retrieval.png",
            rows.held_out[data.image_column],
            captions,
            images,
            texts,
            queries=min(SHEET_QUERIES, len(captions)),
            title=f"{name}: retrieval among {len(captions)} held-out images and captions",
        )
        pictures["What is retrieved for held-out images and captions"] = "retrieval.png"
        measured = [_results(run, metrics, len(rows.held_out))]
    base = run.recipe.model.model_name_or_path
    card = Card(
        name=name,
        summary=_summary(run),
        facts=facts_of(folder),
        limits=about.limits or LIMITS,
        example=example_of(folder),
        license=run.recipe.model.license,
        # a folder of this machine says nothing on the Hub
        base_model=base if base and not Path(base).exists() else None,
        datasets=[about.id] if "/" in about.id else [],
        languages=[column for column in data.caption_column if column in about.languages],
        tags=["image-text-retrieval"],
        pictures=pictures,
        measured=measured,
        training=training_text(trainer.trained(), len(rows.train) if isinstance(rows.train, Dataset) else None),
        recipe=text_of_recipe(run.recipe),
    )
    write_card(folder, card)


def _held_out_captions(run: Run) -> list[str]:
    """The first caption of each held-out image."""
    dataset = run.trainer.eval_dataset
    assert isinstance(dataset, CaptionedRows)
    return [dataset.captions[i][0] for i in range(len(dataset))]


def write_samples(images: Sequence[Image.Image], captions: list[str], folder: Path) -> None:
    """Some held-out images as PNG, and `captions.json` with their captions and others to choose among."""
    chosen = torch.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().int().tolist()
    labels = {}
    if (folder / CAPTIONS).is_file():  # of an earlier run
        shutil.rmtree(folder)
    elif folder.exists():
        logger.warning("%s is there and not of an earlier run: no held-out images are written", folder)
        return
    with new_folder(folder) as draft:
        for number, row in enumerate(chosen):
            file = f"{number:02d}.png"
            load_image(images[row]).save(draft / file)
            labels[file] = captions[row]
        write_json(draft / CAPTIONS, {"images": labels, "captions": captions[:MAX_CAPTIONS]})


def _results(run: Run, metrics: Mapping[str, float], count: int) -> Results:
    """The figures over `count` held-out pairs."""
    note = f"Retrieval is among all {count} held-out pairs; equal scores count as misses."
    if run.tasks:
        note += (
            " Zero-shot classes are given by texts that name the class and nothing of the image; for tone_of_name the "
            "choice is between the image's own caption and the same with another tone; "
            f"{', '.join(f'{task.name}: {len(task.rows)} images' for task in run.tasks)}."
        )
    if not run.recipe.data.upscale:
        note += " Images of few patches were not enlarged: `upscale=False`."
    if run.recipe.data.shuffle_captions:
        note += " **A control: trained with shuffled captions.**"
    return Results(
        dataset=run.rows.about.title,
        dataset_id=run.rows.about.id,
        figures=tuple(_figures(run.tasks, metrics, count)),
        split=f"{count} held-out pairs",
        date=today(),
        note=note,
    )


def _figures(tasks: Sequence[Task], metrics: Mapping[str, float], count: int) -> list[Figure]:
    found = [
        Figure(f"{label} R@{k}", f"{direction}_recall@{k}", metrics[f"{direction}_recall@{k}"], k / count)
        for direction, label in (("image_to_text", "image→text"), ("text_to_image", "text→image"))
        for k in (1, 5)
    ]
    found += [
        Figure(
            f"zero-shot {task.name} ({len(task.class_names)} classes)",
            f"zero_shot_{task.name}_accuracy",
            metrics[f"zero_shot_{task.name}"],
            1 / len(task.class_names),
        )
        for task in tasks
    ]
    return found


def _summary(run: Run) -> str:
    model, about = run.recipe.model, run.rows.about
    origin = "trained from scratch"
    if model.model_name_or_path is not None:
        origin = f"fine-tuned from `{_shown(model.model_name_or_path)}`"
    elif model.vision_name_or_path is not None:
        text_tower = "a new text tower" if model.text_name_or_path is None else f"`{_shown(model.text_name_or_path)}`"
        origin = f"made of the image tower `{_shown(model.vision_name_or_path)}` and {text_tower}, trained"
    assert run.trainer.model is not None
    parameters = sum(parameter.numel() for parameter in run.trainer.model.parameters())
    return (
        f"A SigLIP image-text model with {parameters / 1e6:.1f} million parameters, {origin} on {about.title} with "
        f"the {run.trainer.loss_name} loss, by `siglip-ext`. {about.summary}"
    ).rstrip()


def text_of_recipe(recipe: Recipe) -> str:
    """The recipe with its overrides as YAML, without paths of this machine and tokens."""
    private = ("output_dir", "hub_token", "resume_from_checkpoint")
    shown = {name: _plain(value) for name, value in recipe.given.items() if name not in private}
    for name in ("dataset", "model_name_or_path", "vision_name_or_path", "text_name_or_path", "image_embeddings"):
        if shown.get(name) is not None:
            shown[name] = _shown(shown[name])
    for name in {REFERENCE, REFERENCE_EMBEDDINGS} & (shown.get("curation") or {}).keys():
        shown["curation"] = {**shown["curation"], name: _shown(shown["curation"][name])}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()


def _plain(value: Any) -> Any:
    """A value as YAML can hold it: of a member of an enumeration, its value."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return getattr(value, "value", value)


def _shown(name: str) -> str:
    """A name of the Hub as it is; of a path on this machine, which says nothing elsewhere, its last part."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def _with_final_figures(state: TrainerState, metrics: Mapping[str, float]) -> list[dict[str, float]]:
    """The history of a run up to its end, which a run that ends by the clock does not evaluate by itself."""
    history = [entry for entry in state.log_history if "eval_loss" not in entry or entry["step"] < state.global_step]
    return [*history, {"step": state.global_step, **{f"eval_{key}": value for key, value in metrics.items()}}]
