"""What a run leaves beside the weights: pictures, the card, and some held-out images to try the model on."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from datasets import Dataset
from transformers import TrainerState

from modeling_siglip_ext.evaluation.pictures.loss_curve import loss_curve
from modeling_siglip_ext.evaluation.pictures.retrieval_sheet import retrieval_contact_sheet
from modeling_siglip_ext.hub.card import Card, Figure, Results, today, write_card
from modeling_siglip_ext.hub.facts import HELD_OUT, example_of, facts_of

from ..components.card import LIMITS, training_text
from .fields import Recipe


if TYPE_CHECKING:
    from .train import Run

SHEET_QUERIES = 8
SAMPLES = 8
MAX_CAPTIONS = 1000


def write_report(run: "Run", metrics: dict[str, float], embeddings: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Write `loss_curve.png`, and with an evaluation set `retrieval.png`, `held_out/` and figures, then `README.md`.

    Args:
        run: the finished run.
        metrics: held-out figures, without prefix.
        embeddings: (image_embeds, text_embeds) of the evaluation set, float arrays (N, D).
    """
    trainer, data = run.trainer, run.recipe.data
    folder = Path(trainer.args.output_dir)
    name = folder.resolve().name
    pictures = {}
    if any("loss" in entry for entry in trainer.state.log_history):  # a run can end before the first log
        loss_curve(folder / "loss_curve.png", _with_final_figures(trainer.state, metrics), title=name)
        pictures["Loss and held-out recall over training"] = "loss_curve.png"
    if embeddings is not None:
        captions = [trainer.eval_dataset.captions[i][0] for i in range(len(trainer.eval_dataset))]
        _write_samples(run, captions, folder / HELD_OUT)
        images, texts = (torch.from_numpy(array) for array in embeddings)
        retrieval_contact_sheet(
            folder / "retrieval.png",
            run.eval_rows[data.image_column],
            captions,
            images,
            texts,
            queries=min(SHEET_QUERIES, len(captions)),
            title=f"{name}: retrieval among {len(captions)} held-out images and captions",
        )
        pictures["What is retrieved for held-out images and captions"] = "retrieval.png"
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    base, dataset = run.recipe.model.model_name_or_path, _dataset_id(run.recipe)
    card = Card(
        name=name,
        summary=_summary(run, parameters),
        facts=facts_of(folder),
        limits=_limits(run.recipe),
        example=example_of(folder),
        license=run.recipe.model.license,
        # a folder of this machine says nothing on the Hub
        base_model=base if base and not Path(base).exists() else None,
        datasets=[dataset] if "/" in dataset else [],
        languages=["en"] if data.dataset == "emoji" and data.caption_column == ["en"] else [],
        tags=["image-text-retrieval"],
        pictures=pictures,
        measured=_results(run, metrics),
        training=training_text(trainer, len(run.train_rows) if isinstance(run.train_rows, Dataset) else None),
        recipe=_recipe_text(run.recipe),
    )
    write_card(folder, card)


def _write_samples(run: "Run", captions: list[str], folder: Path) -> None:
    """Some held-out images as PNG, and `captions.json` with their captions and others to choose among."""
    folder.mkdir(exist_ok=True)
    rows = run.eval_rows
    chosen = torch.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().int().tolist()
    labels = {}
    for number, row in enumerate(chosen):
        file = f"{number:02d}.png"
        rows[row][run.recipe.data.image_column].convert("RGB").save(folder / file)
        labels[file] = captions[row]
    listing = {"images": labels, "captions": captions[:MAX_CAPTIONS]}
    (folder / "captions.json").write_text(json.dumps(listing, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _results(run: "Run", metrics: dict[str, float]) -> list[Results]:
    if run.eval_rows is None:
        return []
    about = {
        "dataset": _dataset_name(run.recipe),
        "dataset_id": _dataset_id(run.recipe),
        "split": f"{len(run.eval_rows)} held-out pairs",
        "date": today(),
    }
    return [Results(figures=tuple(_figures(run, metrics)), note=_figures_note(run), **about)]


def _figures(run: "Run", metrics: dict[str, float]) -> list[Figure]:
    count = len(run.eval_rows)
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
        for task in run.tasks
    ]
    return found


def _figures_note(run: "Run") -> str:
    note = f"Retrieval is among all {len(run.eval_rows)} held-out pairs; equal scores count as misses."
    if run.tasks:
        note += (
            " Zero-shot classes are given by texts that name the class and nothing of the image; for tone_of_name the "
            "choice is between the image's own caption and the same with another tone; "
            f"{', '.join(f'{task.name}: {len(task.rows)} images' for task in run.tasks)}."
        )
    if run.recipe.data.shuffle_captions:
        note += " **A control: trained with shuffled captions.**"
    return note


def _dataset_name(recipe: Recipe) -> str:
    if recipe.data.dataset == "emoji":
        return "Emoji and their names (bundled with siglip-ext)"
    return Path(recipe.data.dataset).name if Path(recipe.data.dataset).exists() else recipe.data.dataset


def _dataset_id(recipe: Recipe) -> str:
    """The Hub's name of the dataset, or a name without slash for one that is not on the Hub."""
    if recipe.data.dataset == "emoji":
        return "siglip-ext-emoji"
    if Path(recipe.data.dataset).exists():
        return re.sub(r"[^\w.-]+", "-", Path(recipe.data.dataset).resolve().name)
    return recipe.data.dataset


def _summary(run: "Run", parameters: int) -> str:
    model = run.recipe.model
    origin = "trained from scratch"
    if model.model_name_or_path is not None:
        origin = f"fine-tuned from `{_shown(model.model_name_or_path)}`"
    elif model.vision_name_or_path is not None:
        text_tower = "a new text tower" if model.text_name_or_path is None else f"`{_shown(model.text_name_or_path)}`"
        origin = f"made of the image tower `{_shown(model.vision_name_or_path)}` and {text_tower}, trained"
    text = (
        f"A SigLIP image-text model with {parameters / 1e6:.1f} million parameters, {origin} on "
        f"{_dataset_name(run.recipe)} with the sigmoid loss, by `siglip-ext`."
    )
    if run.recipe.data.dataset == "emoji":
        text += (
            ' The held-out names recombine words of the training names ("woman scientist: medium-dark skin tone"), '
            "so the figures below measure generalisation to unseen combinations."
        )
    return text


def _limits(recipe: Recipe) -> str:
    if recipe.data.dataset == "emoji":
        return (
            "A demonstration: it has seen 3139 drawings of one emoji font and their Unicode names, and knows nothing "
            "of photographs. Categories of people, such as gender and skin tone, are those of the Unicode names. The "
            "drawings are Noto Color Emoji (SIL Open Font License 1.1), the names Unicode CLDR (Unicode licence)."
        )
    return LIMITS


def _recipe_text(recipe: Recipe) -> str:
    """The recipe with its overrides as YAML, without paths of this machine and tokens."""
    private = ("output_dir", "hub_token", "resume_from_checkpoint")
    shown = {name: getattr(value, "value", value) for name, value in recipe.given.items() if name not in private}
    for name in ("dataset", "model_name_or_path", "vision_name_or_path", "text_name_or_path", "image_embeddings"):
        if shown.get(name) is not None:
            shown[name] = _shown(shown[name])
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()


def _shown(name: str) -> str:
    """A name of the Hub as it is; of a path on this machine, which says nothing elsewhere, its last part."""
    return Path(name).name if Path(name).exists() else name


def _with_final_figures(state: TrainerState, metrics: dict[str, float]) -> list[dict[str, float]]:
    """The history of a run up to its end, which a run that ends by the clock does not evaluate by itself."""
    history = [entry for entry in state.log_history if "eval_loss" not in entry or entry["step"] < state.global_step]
    return [*history, {"step": state.global_step, **{f"eval_{key}": value for key, value in metrics.items()}}]
