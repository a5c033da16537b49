"""Zero-shot tasks on the emoji images: which rows, which classes, which prompts.

The prompts of a classification task are written in the style of the captions and are the same for every image. They
name the classes and nothing of a particular image; for images held out of training, the answer must come from what was
learnt of others. In the forced choice each image has its own name, with each of the five tones put into it.
"""

from collections.abc import Callable, Sequence

from datasets import Dataset

from modeling_siglip_ext.evaluation.metrics.zero_shot import ForcedChoiceTask, ZeroShotTask, fill_templates

from .loader import SPLITS, load_split
from .split import GENDERS, TONES


_PEOPLE = ("person", "man", "woman")
_TONE_TEMPLATES = [f"{who}: {{}} skin tone" for who in (*_PEOPLE, "hand")]
_GENDER_TEMPLATES = ["{}", *(f"{{}}: {tone} skin tone" for tone in TONES)]
# Names write these after a colon ("man: beard").
_HAIR = frozenset({"bald", "beard", "blond hair", "curly hair", "red hair", "white hair"})


def _role_prompts(role: str) -> list[str]:
    if role in _HAIR:
        return [f"{who}: {role}" for who in _PEOPLE]
    if role == "deaf":
        return [f"deaf {who}" for who in _PEOPLE]
    return [f"{who} {role}" for who in _PEOPLE]


def _plain(name: str) -> list[str]:
    """The name of a group or subgroup as it stands, in words."""
    return [name.replace("-", " ").lower()]


def _task(
    name: str, column: list[str | None], classes: list[str], prompts: Callable[[str], list[str]] | Sequence[str]
) -> ZeroShotTask:
    number = {value: i for i, value in enumerate(classes)}
    labels = {i: number[value] for i, value in enumerate(column) if value is not None}
    if isinstance(prompts, Sequence):
        texts = fill_templates(classes, prompts)
    else:
        texts = [prompts(value) for value in classes]
    return ZeroShotTask(name, classes, texts, list(labels), list(labels.values()))


def _tone_of_name(names: list[str], tones: list[str | None]) -> ForcedChoiceTask:
    """Which of five names that differ in their tone alone? It needs the tone and nothing else, in its context."""
    toned = {i: tone for i, tone in enumerate(tones) if tone is not None}
    choices = [
        [names[i].replace(f"{own} skin tone", f"{tone} skin tone") for tone in TONES] for i, own in toned.items()
    ]
    labels = [TONES.index(own) for own in toned.values()]
    return ForcedChoiceTask("tone_of_name", TONES, choices, list(toned), labels)


def emoji_tasks(dataset: Dataset, reference: Dataset | None = None) -> list[ZeroShotTask | ForcedChoiceTask]:
    """The six tasks over the rows of `dataset`.

    Zero-shot classification by tone (5 classes), gender (2), role (76), group (9) and subgroup (99), and the forced
    choice tone_of_name (5 candidates).

    Args:
        dataset: rows to classify, e.g. ``load_emoji("test")``.
        reference: where the classes of role, group and subgroup come from, so that they do not depend on the rows
            being classified; by default the whole bundled dataset.
    """
    known = {"role": set(), "group": set(), "subgroup": set()}
    for part in [reference] if reference is not None else [load_split(split) for split in SPLITS]:
        for column, values in known.items():
            values.update(value for value in part[column] if value is not None)
    columns = {name: list(dataset[name]) for name in ("tone", "gender", "role", "group", "subgroup")}
    return [
        _tone_of_name(list(dataset["en"]), columns["tone"]),
        _task("tone", columns["tone"], list(TONES), _TONE_TEMPLATES),
        _task("gender", columns["gender"], list(GENDERS), _GENDER_TEMPLATES),
        _task("role", columns["role"], sorted(known["role"]), _role_prompts),
        _task("group", columns["group"], sorted(known["group"]), _plain),
        _task("subgroup", columns["subgroup"], sorted(known["subgroup"]), _plain),
    ]
