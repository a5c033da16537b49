"""The fields of a recipe that say what a model is trained for beside the contrastive loss."""

import difflib
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..data.locca import CaptionTasks
from ..objectives.captioning import CaptionLossSettings
from ..objectives.curation import CurationSettings
from ..objectives.masks import MaskSettings
from ..objectives.matching import MatchingSettings
from ..objectives.self_distillation import KINDS
from ..objectives.views import ViewSettings
from .fields import as_mapping


CONTRASTIVE, CAPTIONING = "contrastive", "captioning"
OBJECTIVES = (CONTRASTIVE, CAPTIONING, *KINDS)
DECODER = ("num_hidden_layers", "max_length", "dropout")
STARTS_AT = "starts_at"
REFERENCE = "reference_name_or_path"


def names_of(*kinds: Any) -> list[str]:
    """The fields of dataclasses of settings that a recipe may set: those that do not come from the model."""
    return [one.name for kind in kinds for one in fields(kind) if one.default is not MISSING]


SETTINGS = {
    "captioning": [*DECODER, *names_of(CaptionTasks, CaptionLossSettings)],
    "self_distillation": [STARTS_AT, *names_of(MatchingSettings, ViewSettings, MaskSettings)],
    "curation": [REFERENCE, *names_of(CurationSettings)],
}


@dataclass
class ObjectiveArguments:
    """What a model is trained for."""

    _argument_group_name = "objectives"

    objectives: dict | str | None = field(
        default=None,
        metadata={
            "help": "What to train for, with weights, beside the contrastive loss: {captioning: 1.0, distillation: "
            "0.25, masking: 0.0625} is SigLIP 2's B. Nothing of it is in the saved model."
        },
    )
    captioning: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of captioning: num_hidden_layers, max_length and dropout of the decoder, tasks, "
            "parallel, task_weights, label_smoothing and more."
        },
    )
    self_distillation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of distillation and masking: starts_at (share of training), momentum, prototypes, "
            "local_views, ratio and more."
        },
    )

    curation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Choose the examples of each batch out of more: ratio (share that is not trained on), score "
            "(learnability, easy_reference, hard_learner), reference_name_or_path, chunks, first_chunk, temperature."
        },
    )

    def __post_init__(self):
        self.objectives = weights = as_weights(self.objectives)
        for name, weight in weights.items():
            check_name("objectives", name, OBJECTIVES)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise ValueError(f"objectives.{name} must be a weight that is not negative, got {weight!r}")
        if weights.get(CONTRASTIVE, 1) != 1:
            raise ValueError(f"objectives.{CONTRASTIVE} is 1: set the weights of the others in relation to it")
        for setting, known in SETTINGS.items():
            given = as_mapping(setting, getattr(self, setting))
            setattr(self, setting, given)
            for name in given or {}:
                check_name(setting, name, known)

    def weights(self) -> dict[str, float]:
        """Of the objectives beside the contrastive one that count."""
        return {name: weight for name, weight in as_weights(self.objectives).items() if name != CONTRASTIVE and weight}


def as_weights(value: dict | str | None) -> dict[str, float]:
    """Weights of objectives, as a recipe or, in JSON, a command line gives them."""
    return as_mapping("objectives", value) or {}


def check_name(setting: str, name: str, known: Collection[str]) -> None:
    """
    Raises:
        ValueError: naming the nearest known name.
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{setting}: unknown name {name!r}; {hint}")
