"""The card of a model that was trained by the Trainer alone, and the words about a training that all cards share."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from modeling_siglip_ext.evaluation.pictures.loss_curve import loss_curve
from modeling_siglip_ext.hub.card import Card
from modeling_siglip_ext.hub.facts import ModelFacts, example_of, facts_of
from modeling_siglip_ext.losses import softmax_loss


if TYPE_CHECKING:
    from ..trainer import SiglipExtTrainer

SETTINGS = (
    "per_device_train_batch_size",
    "mini_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "lock_towers",
    "vision_lr_factor",
    "text_lr_factor",
    "head_lr_factor",
    "layer_decay",
    "ema_decay",
    "seed",
    "bf16",
    "fp16",
)
GENERATED = "generated_from_trainer"  # the Hub knows this tag from the stock Trainer
LIMITS = (
    "Not examined beyond the figures above. The model inherits the biases of its training data and, if it was "
    "fine-tuned, of the checkpoint it started from."
)


def training_text(trainer: "SiglipExtTrainer", images: int | None = None) -> str:
    """How long, on how much, and where the head ended.

    Args:
        images: size of the training set; None for a stream.
    """
    args, state, model = trainer.args, trainer.state, trainer._core_model()
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    epochs = "" if images is None else f" ({state.epoch or 0:.1f} epochs over {images:,} images)"
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), 0.0)
    text = (
        f"{state.global_step} steps, {state.global_step * batch:,} image-text pairs seen{epochs}, "
        f"{seconds:.0f} s, on {args.world_size} {args.device.type} process{'es' if args.world_size > 1 else ''}. "
        f"Final temperature {model.logit_scale.exp().item():.2f}"
    )
    return text + ("." if model.logit_bias is None else f", bias {model.logit_bias.item():.2f}.")


def trainer_card(
    trainer: "SiglipExtTrainer",
    *,
    name: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    finetuned_from: str | None = None,
    dataset: str | Sequence[str] | None = None,
) -> Card:
    """The card of the model in `output_dir`, from what the Trainer knows; figures are those that were logged.

    Args:
        name: title; the folder's name where it is not given.
        license, language, tags: for the metadata.
        finetuned_from: name on the Hub of the checkpoint it started from.
        dataset: name or names on the Hub of the training set.

    """
    folder = Path(trainer.args.output_dir)
    pictures = {}
    if any("loss" in entry for entry in trainer.state.log_history):
        loss_curve(folder / "loss_curve.png", trainer.state.log_history, title=folder.resolve().name)
        pictures["Loss over training"] = "loss_curve.png"
    origin = finetuned_from or getattr(trainer._core_model().config, "_name_or_path", "")
    if not origin or Path(origin).exists():  # a folder of this machine says nothing elsewhere
        origin = None
    loss = "softmax" if trainer._contrastive_loss is softmax_loss else "sigmoid"
    source = f"fine-tuned from `{origin}`" if origin else "trained"
    parameters = sum(parameter.numel() for parameter in trainer._core_model().parameters())
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    figures = {k: v for k, v in (evaluated[-1] if evaluated else {}).items() if k.startswith("eval_")}
    timings = ("runtime", "per_second")
    shown = {k: v for k, v in figures.items() if isinstance(v, float) and not any(word in k for word in timings)}
    training = training_text(trainer)
    if shown:
        training += " On its evaluation set, at the last evaluation: " + ", ".join(
            f"{key.removeprefix('eval_')} {value:.4g}" for key, value in shown.items()
        )
        training += "."
    return Card(
        name=name or folder.resolve().name,
        summary=(
            f"An image-text model with {parameters / 1e6:.1f} million parameters, {source} with the {loss} loss, by "
            "`siglip-ext`."
        ),
        facts=_facts(trainer),
        limits=LIMITS,
        example=example_of(folder),
        license=license,
        base_model=origin,
        datasets=_listed(dataset),
        languages=_listed(language),
        tags=[GENERATED, *_listed(tags)],
        pictures=pictures,
        training=training,
        recipe=_settings(trainer),
    )


def _facts(trainer: "SiglipExtTrainer") -> ModelFacts:
    """The facts of the model as it is or will be saved."""
    with TemporaryDirectory() as folder:
        trainer._core_model().config.save_pretrained(folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
        return facts_of(folder)


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _settings(trainer: "SiglipExtTrainer") -> str:
    values = {name: getattr(trainer.args, name) for name in SETTINGS}
    shown = {name: getattr(value, "value", value) for name, value in values.items() if value not in (None, [], False)}
    return yaml.safe_dump(shown, sort_keys=False).strip()
