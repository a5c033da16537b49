"""The fields of a recipe that say what a model is trained for beside the contrastive loss."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from modeling_siglip_ext.captioning import CaptionDecoderConfig

from ..data.locca import CaptionTasks
from ..objectives.captioning import CaptionLossSettings
from ..objectives.curation import CurationSettings
from ..objectives.masks import MaskSettings
from ..objectives.matching import MatchingSettings
from ..objectives.self_distillation import KINDS
from ..objectives.views import ViewSettings
from .fields import as_mapping, check_name


CONTRASTIVE, CAPTIONING = "contrastive", "captioning"
OBJECTIVES = (CONTRASTIVE, CAPTIONING, *KINDS)
DECODER = ("num_hidden_layers", "max_length", "dropout")
STARTS_AT, BOX_SCALE = "starts_at", "box_scale"
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "none"}
PLURAL = {int: "whole numbers", float: "numbers", str: "names"}
REFERENCE, REFERENCE_EMBEDDINGS = "reference_name_or_path", "reference_embeddings"


def names_of(*kinds: Any) -> list[str]:
    """The fields of dataclasses of settings that a recipe may set: those that do not come from the model."""
    return [one.name for kind in kinds for one in fields(kind) if one.default is not MISSING]


def types_of(*kinds: Any) -> dict[str, Any]:
    """The types of `names_of`."""
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    return {name: hints[name] for name in names_of(*kinds)}


DECODER_TYPES = get_type_hints(CaptionDecoderConfig)
SETTINGS = {
    "captioning": {BOX_SCALE: int}
    | {name: DECODER_TYPES[name] for name in DECODER}
    | types_of(CaptionTasks, CaptionLossSettings),
    "self_distillation": {STARTS_AT: float} | types_of(MatchingSettings, ViewSettings, MaskSettings),
    "curation": {REFERENCE: str, REFERENCE_EMBEDDINGS: str} | types_of(CurationSettings),
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
            "help": "Settings of captioning: num_hidden_layers, max_length and dropout of the decoder, box_scale (the "
            "largest integer of a box), tasks, parallel, task_weights, label_smoothing and more."
        },
    )
    self_distillation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of distillation and masking: starts_at (share of training), momentum, prototypes, "
            "local_views, ratio and more."
        },
    )

    objectives_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint of another run whose decoder, heads and teacher go on, perhaps at another resolution; "
            "a teacher begins anew where its objectives start later than at 0. "
            "model_name_or_path names the same one for the towers."
        },
    )
    curation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Choose the examples of each batch out of more: ratio (share that is not trained on), score "
            "(learnability, easy_reference, hard_learner), reference_name_or_path or reference_embeddings (a folder "
            "of `siglip-ext-train precompute`), chunks, first_chunk, temperature."
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
            for name, value in (given or {}).items():
                check_name(setting, name, known)
                if not is_of(value, known[name]):
                    raise ValueError(f"{setting}.{name} must be {in_words(known[name])}, got {value!r}")

    def weights(self) -> dict[str, float]:
        """Of the objectives beside the contrastive one that count."""
        return {name: weight for name, weight in as_weights(self.objectives).items() if name != CONTRASTIVE and weight}


def as_weights(value: dict | str | None) -> dict[str, float]:
    """Weights of objectives, as a recipe or, in JSON, a command line gives them."""
    return as_mapping("objectives", value) or {}


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value of YAML or JSON is of the type of a setting; a list where that is a tuple."""
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        some = isinstance(value, (list, tuple))
        length = some and (parts[-1] is Ellipsis or len(value) == len(parts))
        return length and all(is_of(one, parts[0]) for one in value)
    if parts:
        return any(is_of(value, part) for part in parts)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind) and value == value  # NaN is no number


def in_words(kind: Any) -> str:
    """What a setting of this type takes."""
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {count}{PLURAL[parts[0]]}"
    if parts:
        return " or ".join(in_words(part) for part in parts)
    return WORDS[kind]
