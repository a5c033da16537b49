"""The choice of examples that a recipe asks for: its settings, and the reference that scores with the learner."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.configuration_siglip_ext import SiglipExtVisionConfig

from ..data.reference_embeddings import ReferenceEmbeddings, check_reference_embeddings, load_reference_embeddings
from ..objectives.curation import CurationSettings
from ..objectives.super_batch import Curation
from .fields import DataArguments
from .models import text_length
from .objective_fields import REFERENCE, REFERENCE_EMBEDDINGS, ObjectiveArguments
from .objectives import as_settings, part_of_settings
from .rows import every_row
from .sources import OF_A_MODEL, check_configuration, is_folder


FIELD, EMBEDDINGS = f"curation.{REFERENCE}", f"curation.{REFERENCE_EMBEDDINGS}"
SAME_IMAGES = ("size", "image_mean", "image_std")


def curation_settings(wanted: ObjectiveArguments, data: DataArguments) -> CurationSettings | None:
    """The settings of the choice, if a recipe asks for one.

    Raises:
        ValueError: a value out of range, a reference that is missing, not read or given twice, or embeddings of it
            for a stream.
        OSError: there is no such reference.
    """
    if wanted.curation is None:
        return None
    settings = CurationSettings(**part_of_settings(as_settings(wanted.curation), CurationSettings))
    name, folder = reference_of(wanted), reference_of(wanted, REFERENCE_EMBEDDINGS)
    given = [field for field, value in ((FIELD, name), (EMBEDDINGS, folder)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{FIELD} and {EMBEDDINGS} both give the reference: set one of them")
    if bool(given) != settings.reads_reference:
        what = f"reads no reference model: leave out {given[0]}" if given else f"needs {FIELD} or {EMBEDDINGS}"
        raise ValueError(f"curation.score={settings.score} {what}")
    if name is not None:
        check_configuration(FIELD, name, is_folder(FIELD, name, OF_A_MODEL))
    if folder is not None:
        if data.is_stream:
            raise ValueError(
                f"{EMBEDDINGS} belong to rows with an index, and a stream or shards have none: set {FIELD} instead"
            )
        check_reference_embeddings(folder)
    return settings


def reference_of(wanted: ObjectiveArguments, form: str = REFERENCE) -> str | None:
    """Folder or Hub name of the reference model, or the folder of its embeddings."""
    given = wanted.curation if isinstance(wanted.curation, Mapping) else {}
    return given.get(form)


def recalled_reference(wanted: ObjectiveArguments, data: DataArguments) -> ReferenceEmbeddings | None:
    """The embeddings of the reference, if a recipe names such.

    Raises:
        OSError: there are none, or not all of them.
        ValueError: they are of other images or captions.
    """
    folder = reference_of(wanted, REFERENCE_EMBEDDINGS)
    if folder is None:
        return None
    return load_reference_embeddings(
        folder, every_row(data, data.caption_column), data.image_column, data.caption_column
    )


def build_curation(
    wanted: ObjectiveArguments,
    settings: CurationSettings | None,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    attention: str | None = None,
    recalled: ReferenceEmbeddings | None = None,
) -> Curation | None:
    """The choice of examples for a model.

    Args:
        wanted: the fields of the recipe.
        settings: of `curation_settings`.
        model: the learner, and its processor.
        attention: implementation of the reference's attention, if not transformers' choice.
        recalled: of `recalled_reference`.

    Raises:
        ValueError: a reference that takes other images or tokens than the learner.
    """
    name = reference_of(wanted)
    if settings is None or name is None:
        return None if settings is None else Curation(settings, recalled)
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
