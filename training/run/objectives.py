"""The objectives that a recipe names beside the contrastive one: their parts, and what their batches need."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from modeling_siglip_ext.captioning import TASKS, CaptionDecoder, CaptionDecoderConfig, TextFormat

from ..data.collator import Addition, Collator, ExtendedCollator, ImageTextCollator
from ..data.locca import CaptioningCollator, CaptionTargets, CaptionTasks
from ..objectives.another_run import go_on
from ..objectives.captioning import Captioning, CaptionLossSettings
from ..objectives.masks import MaskSettings, PatchMasks
from ..objectives.matching import MatchingSettings
from ..objectives.model import TrainedObjective
from ..objectives.self_distillation import KINDS, self_distillation
from ..objectives.views import Views, ViewSettings
from .objective_fields import BOX_SCALE, CAPTIONING, DECODER, STARTS_AT, ObjectiveArguments, names_of


@dataclass(frozen=True)
class Beside:
    """What is trained beside the contrastive loss.

    Args:
        objectives: as `SiglipExtTrainer` takes them.
        collator: makes what they need of each batch, too.
    """

    objectives: dict[str, tuple[TrainedObjective, float]]
    collator: Collator


def build_beside(
    wanted: ObjectiveArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    collator: ImageTextCollator,
    regions: bool = False,
) -> Beside:
    """The objectives of a recipe for a model.

    Args:
        wanted: the fields of the recipe.
        model: the dual model.
        processor: its processor.
        collator: makes the batches of the contrastive loss.
        regions: whether examples have regions, which captioning learns, too, unless its tasks are given.

    Raises:
        FileNotFoundError: `objectives_from` is no checkpoint of a run with objectives.
        ValueError: settings out of range, a model or tokenizer that an objective cannot work with, or objectives of
            another form than those of `objectives_from`.
    """
    weights = wanted.weights()
    if not weights:
        return Beside({}, collator)
    objectives: dict[str, tuple[TrainedObjective, float]] = {}
    inner: Collator = collator
    additions: list[Addition] = []
    if CAPTIONING in weights:
        values = as_settings(wanted.captioning)
        tokenizer = processor.tokenizer
        shape = {name: values[name] for name in DECODER if name in values}
        config = CaptionDecoderConfig.for_towers(model.config, tokenizer, text_format=text_format(values), **shape)
        loss = CaptionLossSettings(**part_of_settings(values, CaptionLossSettings))
        objectives[CAPTIONING] = Captioning(CaptionDecoder(config), loss), weights[CAPTIONING]
        learned: dict[str, Any] = {"tasks": TASKS if regions else TASKS[:1]}
        tasks = CaptionTasks(**(learned | part_of_settings(values, CaptionTasks)))
        if loss.task_weights is not None and len(loss.task_weights) != len(tasks.tasks):
            raise ValueError(
                f"captioning.task_weights={list(loss.task_weights)} are not one for each of the tasks, "
                f"{', '.join(tasks.tasks)}"
            )
        inner = CaptioningCollator(collator, CaptionTargets(tokenizer, config, tasks))
    own = {name: weight for name, weight in weights.items() if name in KINDS}
    if own:
        values, vision = as_settings(wanted.self_distillation), model.config.vision_config
        matching = MatchingSettings(**part_of_settings(values, MatchingSettings))
        objectives |= self_distillation(model, own, matching, values.get(STARTS_AT, 0.0))
        views = ViewSettings.for_tower(vision, **part_of_settings(values, ViewSettings))
        if "distillation" not in own:
            views = replace(views, local_views=0)
        elif not views.local_views:
            raise ValueError("self_distillation.local_views=0 leaves distillation without views: set 1 or more")
        additions.append(Views(views))
        if "masking" in own:
            masks = MaskSettings.for_tower(vision, **part_of_settings(values, MaskSettings))
            additions.append(PatchMasks(masks))
    if wanted.objectives_from is not None:
        go_on({name: objective for name, (objective, _) in objectives.items()}, Path(wanted.objectives_from))
    return Beside(objectives, ExtendedCollator(inner, *additions))


def text_format(values: Mapping[str, Any]) -> TextFormat:
    """How captions and boxes are written, of the settings of captioning."""
    return TextFormat(**({BOX_SCALE: values[BOX_SCALE]} if BOX_SCALE in values else {}))


def written_beside(wanted: ObjectiveArguments, regions: bool) -> list[str]:
    """What a decoder writes beside captions, for a tokenizer that is trained on them: prefixes, and integers of boxes,
    so that these are tokens of their own as far as the vocabulary has room."""
    if CAPTIONING not in wanted.weights():
        return []
    form = text_format(as_settings(wanted.captioning))
    numbers = [str(number) for number in range(form.box_scale + 1)] if regions else []
    return [*(form.prefix(task) for task in TASKS), form.separator, form.box_separator.join(numbers)]


def as_settings(values: Any) -> dict[str, Any]:
    """The settings of a recipe's field, whose lists become tuples."""
    given = values if isinstance(values, Mapping) else {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def part_of_settings(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Those of the values that are fields of a dataclass."""
    return {name: value for name, value in values.items() if name in names_of(kind)}
