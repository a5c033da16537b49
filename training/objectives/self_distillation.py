"""Distillation and masking together, as SigLIP 2 trains with them: one teacher, weights by the size of the model."""

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from .distillation import Distillation
from .masking import Masking
from .matching import MatchingSettings
from .model import TrainedObjective
from .teacher import VisionTeacher
from .vision_tower import check_tower, vision_tower


KINDS: Mapping[str, type[Distillation] | type[Masking]] = MappingProxyType(
    {"distillation": Distillation, "masking": Masking}
)
# Both terms together, by the width of the vision tower: B, L, So400m, g (arXiv 2502.14786, sec. 2.3).
WEIGHTS = {768: 0.25, 1024: 0.5, 1152: 1.0, 1536: 0.5}
MASKING_SHARE = 0.25


def default_weights(width: int) -> dict[str, float]:
    """SigLIP 2's weights for a vision tower of this width; those of the next larger model where it has no such one."""
    weight = next((weight for known, weight in WEIGHTS.items() if width <= known), WEIGHTS[1536])
    return {"distillation": weight, "masking": weight * MASKING_SHARE}


def self_distillation(
    core: nn.Module,
    weights: Mapping[str, float] | None = None,
    settings: MatchingSettings | Mapping[str, MatchingSettings] | None = None,
    starts_at: float = 0.0,
) -> dict[str, tuple[TrainedObjective, float]]:
    """Objectives for `SiglipExtTrainer`, which share a teacher.

    Args:
        core: the dual model, SiglipExtModel or a stock one.
        weights: of "distillation", "masking" or both; SigLIP 2's for both unless given.
        settings: of heads, centers and teacher, for both or for each; the teacher of the tower takes the momentum of
            the first.
        starts_at: share of training after which they join; SigLIP 2 has 0.8.

    Raises:
        ValueError: for another name, a share out of range, or a tower that these objectives cannot work with.

    Example:

        objectives = self_distillation(model, starts_at=0.8)
        views = Views(ViewSettings.for_tower(model.config.vision_config))
        masks = PatchMasks(MaskSettings.for_tower(model.config.vision_config))
        collator = ExtendedCollator(ImageTextCollator(processor), views, masks)
        trainer = SiglipExtTrainer(model=model, objectives=objectives, data_collator=collator, ...)
    """
    if weights is None:
        check_tower(core, "distillation")
        weights = default_weights(vision_tower(core).config.hidden_size)
    unknown = [name for name in weights if name not in KINDS]
    if unknown or not weights:
        raise ValueError(f"self-distillation has {' and '.join(KINDS)}, got {list(weights)}")
    if not 0 <= starts_at < 1:
        raise ValueError(f"starts_at is a share of training, at least 0 and below 1, got {starts_at}")
    check_tower(core, next(iter(weights)))
    settings = settings or MatchingSettings()
    chosen = {name: settings[name] if isinstance(settings, Mapping) else settings for name in weights}
    teacher, owner = VisionTeacher(vision_tower(core), next(iter(chosen.values())).momentum), next(iter(weights))
    objectives: dict[str, tuple[TrainedObjective, float]] = {}
    for name, weight in weights.items():
        objective = KINDS[name](core, teacher, chosen[name], owns_teacher=name == owner)
        objective.starts_at = starts_at
        objectives[name] = objective, weight
    return objectives
