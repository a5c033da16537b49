"""Recipes: YAML files whose fields are those of three dataclasses, each of which the command line can override."""

import argparse
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType
from transformers.utils import logging

from modeling_siglip_ext.command_line import underscored

from ..arguments import SiglipExtTrainingArguments
from .fields import DataArguments, ModelArguments, as_mapping
from .objective_fields import SETTINGS, ObjectiveArguments
from .unset import check_places, is_unset, take_out_unset
from .unused import find_unused


logger = logging.get_logger(__name__)

RECIPES = resources.files("modeling_siglip_ext.training.recipes")
PARTS = (ModelArguments, DataArguments, SiglipExtTrainingArguments, ObjectiveArguments)
FIELDS = [field.name for part in PARTS for field in fields(part) if field.init]
OPTIONAL = {field.name for part in PARTS for field in fields(part) if field.default is None}
DEFAULTS = {
    field.name: field.default if field.default_factory is MISSING else field.default_factory()
    for part in PARTS
    for field in fields(part)
}
# Of YAML's values the parser checks single ones only.
KINDS = {
    field.name: f"{field.type} {'None' if field.default is None else ''}".lower().replace("optional", "none")
    for part in PARTS
    for field in fields(part)
}
MAPPINGS = (
    "vision_config",
    "text_config",
    "initial_values",
    "scenes",
    "objectives",
    "captioning",
    "self_distillation",
    "curation",
)
# Of the others `none` may be a value, as of a tower's pooling.
UNSETTABLE = ("objectives", *SETTINGS)
SUFFIXES = (".yaml", ".yml")
COMMAND_LINE = "the command line"


class Loader(yaml.SafeLoader):
    """YAML 1.2 in that 1e-5 is a number, which YAML 1.1 wants to be 1.0e-5."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Recipe:
    """Everything that `prepare` needs.

    Args:
        name: of the bundled recipe or, without its suffix, of the file.
        model, data, training, objectives: the fields.
        given: those that the file or the command line set and that have an effect, in their order, with their final
            values.
    """

    name: str
    model: ModelArguments
    data: DataArguments
    training: SiglipExtTrainingArguments
    objectives: ObjectiveArguments
    given: dict[str, Any]


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(entry.name).stem for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def is_recipe(word: str) -> bool:
    """Whether a word of the command line stands for a recipe: a bundled one, a file, or what was to be a file."""
    return word in bundled_recipes() or word.endswith(SUFFIXES) or Path(word).is_file()


def recipe_text(name_or_path: str) -> str:
    """The text of a bundled recipe (by name) or of a file (by path).

    Raises:
        FileNotFoundError: naming the nearest bundled recipe, and listing them.
    """
    bundled = bundled_recipes()
    if name_or_path in bundled:
        return RECIPES.joinpath(f"{name_or_path}.yaml").read_text("utf-8")
    if Path(name_or_path).is_file():
        return Path(name_or_path).read_text("utf-8")
    near = difflib.get_close_matches(Path(name_or_path).stem, bundled, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"{name_or_path!r} is neither a YAML file nor a bundled recipe ({', '.join(bundled)}){hint}"
    )


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Fields of a bundled recipe (by name) or of a YAML file (by path).

    Raises:
        FileNotFoundError: listing the bundled recipes.
        ValueError: if the file is not a YAML mapping, or has a field twice.
    """
    try:
        text = recipe_text(name_or_path)
        recipe, twice = yaml.load(text, Loader), repeated_key(yaml.compose(text, Loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name_or_path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{name_or_path} must be a YAML mapping of field names to values")
    if twice is not None:
        raise ValueError(f"{name_or_path} has {twice!r} twice: leave one out")
    return recipe


def repeated_key(node: Any) -> str | None:
    """A key that a mapping of YAML has twice, of which a parser keeps the last in silence."""
    if not isinstance(node, yaml.MappingNode):
        return None
    names = [str(key.value) for key, _ in node.value]
    inside = (repeated_key(value) for _, value in node.value)
    return next((name for name in names if names.count(name) > 1), None) or next(filter(None, inside), None)


def field_parser(**kwargs: Any) -> HfArgumentParser:
    """The parser of every field of a recipe."""
    return HfArgumentParser(cast(list[DataClassType], PARTS), allow_abbrev=False, exit_on_error=False, **kwargs)


def parse_recipe(
    name_or_path: str, overrides: Sequence[str] = (), change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> Recipe:
    """Read a recipe and apply command-line overrides.

    Args:
        name_or_path: bundled recipe or YAML file.
        overrides: as on the command line: `["--learning_rate", "1e-4", "--vision_config.hidden_size", "64"]`.
        change: applied to the fields of the file before the overrides are, as `smoke.shrunk`.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: unknown field (naming the nearest one), a value of the wrong type, or a field without effect.
    """
    values = read_recipe(name_or_path)
    for name, value in values.items():
        check_field(name, FIELDS, name_or_path)
        check_kind(name, value, name_or_path)
    if change is not None:
        values = change(values)
    check_places(words := underscored(overrides))
    words, unset = take_out_unset(words, OPTIONAL)
    values |= dict.fromkeys([*unset, *(name for name in OPTIONAL & values.keys() if is_unset(values[name]))])
    words, nested = split_nested(words)
    for name, entries in nested.items():
        check_field(name, MAPPINGS, COMMAND_LINE)
        values[name] = {**(as_mapping(name, values.get(name)) or {}), **entries}
        if name in UNSETTABLE:
            values[name] = {key: value for key, value in values[name].items() if not is_unset(entries.get(key))}
    options = [option_name(word) for word in words if word.startswith("--")]
    on_line = {name if name in FIELDS else name.removeprefix("no_") for name in options} | nested.keys()
    namespace = parse_fields(words, values)
    names = dict.fromkeys([*values, *on_line])
    loose = change is not None or name_or_path in bundled_recipes()
    left_out = leave_out_unused(namespace, names, on_line, loose)
    if left_out:
        logger.warning("%s: left out, as without effect here: %s", name_or_path, "; ".join(left_out))
    parts = cast(
        tuple[ModelArguments, DataArguments, SiglipExtTrainingArguments, ObjectiveArguments],
        field_parser().parse_dict(vars(namespace)),
    )
    given = {name: getattr(next(part for part in parts if hasattr(part, name)), name) for name in names}
    return Recipe(Path(name_or_path).stem, *parts, given)


def leave_out_unused(
    namespace: argparse.Namespace, names: dict[str, None], on_line: Collection[str], loose: bool
) -> list[str]:
    """Put fields that the command line has made void, and with `loose` all void ones of the file, to their defaults.

    So are those whose rule calls them harmless, wherever they were set.

    Args:
        namespace: all fields.
        names: those that somebody set; the ones that are left out are taken away.
        on_line: those that the command line set.

    Returns:
        What was left out, with the reasons.

    Raises:
        ValueError: somebody set one that has no effect.
    """
    left_out: dict[str, str] = {}
    while unused := find_unused(namespace, names, DEFAULTS):
        voided = {*on_line, *left_out}
        void = [
            name
            for name, rule in unused.items()
            if rule.harmless or (name not in on_line and (loose or not voided.isdisjoint(rule.because.split())))
        ]
        if not void:
            name, rule = next(iter(unused.items()))
            raise ValueError(f"{name} has no effect {rule.why}: leave it out")
        for name in void:
            left_out[name] = f"{name} ({unused[name].why})"
            setattr(namespace, name, DEFAULTS[name])
            del names[name]
    return list(left_out.values())


def parse_fields(words: list[str], defaults: dict[str, Any]) -> argparse.Namespace:
    """All fields, from the words of a command line and what the fields are that no word sets."""
    for word in words:
        if word.startswith("--") and option_name(word).removeprefix("no_") not in FIELDS:
            check_field(option_name(word), FIELDS, COMMAND_LINE)
    parser = field_parser()
    # As text, so that the parser checks and converts values of a file as it does those of the command line.
    scalars = (bool, int, float)
    parser.set_defaults(**{name: str(v) if isinstance(v, scalars) else v for name, v in defaults.items()})
    try:
        namespace, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"{COMMAND_LINE}: {rest[0]!r} belongs to no field")
    if str(namespace.fsdp).lower() in ("true", "false"):  # to its parser it is text, which Trainer takes for options
        namespace.fsdp = str(namespace.fsdp).lower() == "true"
    return namespace


def option_name(word: str) -> str:
    return word.removeprefix("--").partition("=")[0]


def check_field(name: str, known: Iterable[str], where: str) -> None:
    """
    Raises:
        ValueError: the name is none of the known ones; with the nearest.
    """
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "see `siglip-ext-train RECIPE --help` for all fields"
        raise ValueError(f"{where}: unknown field {name!r}; {hint}")


def check_kind(name: str, value: Any, where: str) -> None:
    """
    Raises:
        ValueError: a list, a mapping or nothing for a field that takes none, or such in a list.
    """
    inside = value if isinstance(value, list) and name not in MAPPINGS else []
    if any(one is None or isinstance(one, (list, dict)) for one in inside):
        raise ValueError(f"{where}: {name} must be a list of single values, got {value!r:.80}")
    for kind, holds in (("list", isinstance(value, list)), ("dict", isinstance(value, dict)), ("none", value is None)):
        if holds and kind not in KINDS[name]:
            what = {"list": "a list", "dict": "a mapping", "none": "empty"}[kind]
            raise ValueError(f"{where}: {name} must be a single value, and is {what}")


def split_nested(words: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--vision_config.hidden_size 64` out of the words, as {"vision_config": {"hidden_size": 64}}."""
    plain, nested = [], {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            plain.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise ValueError(f"{COMMAND_LINE}: {name} needs a value")
        outer, inner = option_name(name).split(".", 1)
        try:
            nested.setdefault(outer, {})[inner] = yaml.load(value, Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{COMMAND_LINE}: {name}: {value!r} is not YAML: {error}") from error
    return plain, nested
