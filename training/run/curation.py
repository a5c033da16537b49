"""The choice of examples that a recipe asks for: its settings, and the reference that scores with the learner."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.configuration_siglip_ext import SiglipExtVisionConfig

from ..objectives.curation import CurationSettings
from ..objectives.super_batch import Curation
from .models import text_length
from .objective_fields import REFERENCE, ObjectiveArguments
from .objectives import as_settings, part_of_settings
from .sources import OF_A_MODEL, check_configuration, is_folder


FIELD = f"curation.{REFERENCE}"
SAME_IMAGES = ("size", "image_mean", "image_std")


def curation_settings(wanted: ObjectiveArguments) -> CurationSettings | None:
    """The settings of the choice, if a recipe asks for one.

    Raises:
        ValueError: a value out of range, or a reference that is missing or not read.
        OSError: there is no such reference.
    """
    if wanted.curation is None:
        return None
    settings = CurationSettings(**part_of_settings(as_settings(wanted.curation), CurationSettings))
    name = reference_of(wanted)
    if (name is None) == settings.reads_reference:
        what = f"needs {FIELD}" if name is None else f"reads no reference model: leave out {FIELD}"
        raise ValueError(f"curation.score={settings.score} {what}")
    if name is not None:
        check_configuration(FIELD, name, is_folder(FIELD, name, OF_A_MODEL))
    return settings


def reference_of(wanted: ObjectiveArguments) -> str | None:
    """Folder or Hub name of the reference model."""
    given = wanted.curation if isinstance(wanted.curation, Mapping) else {}
    return given.get(REFERENCE)


def build_curation(
    wanted: ObjectiveArguments,
    settings: CurationSettings | None,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    attention: str | None = None,
) -> Curation | None:
    """The choice of examples for a model.

    Args:
        wanted: the fields of the recipe.
        settings: of `curation_settings`.
        model: the learner, and its processor.
        attention: implementation of the reference's attention, if not transformers' choice.

    Raises:
        ValueError: a reference that takes other images or tokens than the learner.
    """
    name = reference_of(wanted)
    if settings is None or name is None:
        return None if settings is None else Curation(settings)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    reference = SiglipExtModel.from_pretrained(name, **options)
    check_same_inputs(name, reference, AutoProcessor.from_pretrained(name), model, processor)
    return Curation(settings, reference)


def check_same_inputs(
    name: str, reference: SiglipExtModel, its: ProcessorMixin, model: PreTrainedModel, processor: ProcessorMixin
) -> None:
    """Whether a reference can be given the learner's batches.

    Raises:
        ValueError: with the first difference.
    """
    vision = cast(SiglipExtVisionConfig, reference.config.vision_config)
    if getattr(vision, "naflex", False):
        raise ValueError(f"{FIELD}={name!r} is a NaFlex model; take one of fixed resolution")
    for part in SAME_IMAGES:
        here, there = (getattr(one.image_processor, part, None) for one in (processor, its))
        if _plain(here) != _plain(there):
            raise ValueError(
                f"{FIELD}={name!r} takes other images than the model: {part} {_plain(there)}, not {_plain(here)}"
            )
    if its.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise ValueError(f"{FIELD}={name!r} has another vocabulary than the model, and cannot read its tokens")
    lengths = text_length(reference, its), text_length(cast(SiglipExtModel, model), processor)
    if lengths[0] != lengths[1]:
        raise ValueError(f"{FIELD}={name!r} takes texts of {lengths[0]} tokens, and the model of {lengths[1]}")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):  # transformers' sizes, with fields for all kinds of them
        return {name: number for name, number in asdict(value).items() if number is not None}
    return dict(value) if hasattr(value, "keys") else list(value) if isinstance(value, tuple) else value
