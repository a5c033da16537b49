"""The card of a model that was trained by the Trainer alone, and the words about a training that all cards share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedConfig, TrainerState

from modeling_siglip_ext.evaluation.pictures.loss_curve import loss_curve
from modeling_siglip_ext.hub.card import Card
from modeling_siglip_ext.hub.facts import ModelFacts, example_of, facts_of

from ..arguments import SiglipExtTrainingArguments
from .towers import loss_head


SETTINGS = (
    "per_device_train_batch_size",
    "mini_batch_size",
    "mini_batch_tokens",
    "halve_batches_at",
    "gradient_accumulation_steps",
    "optim",
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


@dataclass(frozen=True)
class Trained:
    """What there is to tell of a training."""

    model: nn.Module
    """Without wrappers; it has a `config`, `logit_scale` and `logit_bias`."""
    args: SiglipExtTrainingArguments
    state: TrainerState
    processor: Any
    """What is saved with the model, if anything."""
    loss: str
    """"sigmoid" or "softmax"."""

    @property
    def config(self) -> PreTrainedConfig:
        config = self.model.config
        assert isinstance(config, PreTrainedConfig)
        return config

    @property
    def folder(self) -> Path:
        """Where the model is written."""
        return output_folder(self.args)


def output_folder(args: SiglipExtTrainingArguments) -> Path:
    """`output_dir`, which is never None once the arguments are made."""
    assert args.output_dir is not None
    return Path(args.output_dir)


def training_text(trained: Trained, images: int | None = None) -> str:
    """How long, on how much, and where the head ended.

    Args:
        images: size of the training set; None for a stream.
    """
    args, state = trained.args, trained.state
    scale, bias = loss_head(trained.model)
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    epochs = "" if images is None else f" ({state.epoch or 0:.1f} epochs over {images:,} images)"
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), 0.0)
    text = (
        f"{state.global_step} steps, {state.global_step * batch:,} image-text pairs seen{epochs}, "
        f"{seconds:.0f} s, on {args.world_size} {args.device.type} process{'es' if args.world_size > 1 else ''}. "
        f"Final temperature {scale.exp().item():.2f}"
    )
    return text + ("." if bias is None else f", bias {bias.item():.2f}.")


def trainer_card(
    trained: Trained,
    *,
    name: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    finetuned_from: str | None = None,
    dataset: str | Sequence[str] | None = None,
) -> Card:
    """The card of the model in `output_dir`, from what is known of its training; figures are those that were logged.

    Args:
        name: title; the folder's name where it is not given.
        license, language, tags: for the metadata.
        finetuned_from: name on the Hub of the checkpoint it started from.
        dataset: name or names on the Hub of the training set.

    """
    folder, history = trained.folder, trained.state.log_history
    pictures = {}
    if any("loss" in entry for entry in history):
        loss_curve(folder / "loss_curve.png", history, title=folder.resolve().name)
        pictures["Loss over training"] = "loss_curve.png"
    origin = finetuned_from or getattr(trained.config, "_name_or_path", "")
    if not origin or Path(origin).exists():  # a folder of this machine says nothing elsewhere
        origin = None
    source = f"fine-tuned from `{origin}`" if origin else "trained"
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    evaluated = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    figures = [
        f"{name.removeprefix('eval_')} {value:.4g}"
        for name, value in evaluated.items()
        if name.startswith("eval_") and isinstance(value, float) and "runtime" not in name and "per_second" not in name
    ]
    training = training_text(trained)
    if figures:
        training += f" On its evaluation set, at the last evaluation: {', '.join(figures)}."
    return Card(
        name=name or folder.resolve().name,
        summary=(
            f"An image-text model with {parameters / 1e6:.1f} million parameters, {source} with the {trained.loss} "
            "loss, by `siglip-ext`."
        ),
        facts=_facts(trained),
        limits=LIMITS,
        example=example_of(folder),
        license=license,
        base_model=origin,
        datasets=_listed(dataset),
        languages=_listed(language),
        tags=[GENERATED, *_listed(tags)],
        pictures=pictures,
        training=training,
        recipe=_settings(trained.args),
    )


def _facts(trained: Trained) -> ModelFacts:
    """The facts of the model as it is or will be saved."""
    with TemporaryDirectory() as folder:
        trained.config.save_pretrained(folder)
        if trained.processor is not None:
            trained.processor.save_pretrained(folder)
        return facts_of(folder)


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _settings(args: SiglipExtTrainingArguments) -> str:
    values = {name: getattr(args, name) for name in SETTINGS if name not in args.without_effect()}
    shown = {name: getattr(value, "value", value) for name, value in values.items() if value not in (None, [], False)}
    return yaml.safe_dump(shown, sort_keys=False).strip()
