"""Model cards: one writer for training, conversion and evaluation, with templates from `model_cards/`.

The metadata block follows the Hub's rules, and huggingface_hub writes and checks it. Figures stand in it as
`model-index`, and those on a dataset of the Hub also in `.eval_results/`. What was measured here and what was
published elsewhere are kept apart in all three places. Parts of a card between marks can be rewritten later: how to
use the model, when the folder is published under a name, and the measured figures, when it is evaluated.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..files import write_text
from .facts import Example, ModelFacts, example_of, facts_of
from .results import EVAL_RESULTS, MEASURED, PUBLISHED, Results, eval_results, write_eval_results


CARD = "README.md"
MARK = re.compile(r"<!-- siglip-ext \S+ wrote this card")
NOTHING_MEASURED = "Nothing was measured with this copy of the weights."
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual")
LICENSE = re.compile(r"[a-z0-9.+-]+")


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        name: title, and the model's name in the metadata.
        summary: what the model is and where it is from.
        facts: how it is loaded and what it takes.
        limits: what it was not tested for, and whose biases it has; Markdown.
        location: its name on the Hub, or "." for a reader who is in its folder.
        example: the image and the labels of the snippets.
        license: the Hub's identifier of the licence of the weights.
        base_model: name on the Hub of the model that was fine-tuned.
        datasets: names on the Hub of what it was trained on.
        languages: codes of the texts' languages, or "multilingual".
        tags: beside "siglip" and "siglip-ext".
        pictures: captions and files in the folder.
        preprocessing: what else must be known of the inputs.
        measured: figures measured with this package on these weights.
        published: figures published elsewhere, with their source.
        published_note: how those relate to these weights.
        training: how it was trained.
        recipe: settings of the training as YAML.
        conversion: what it was made from, and how closely it agrees; Markdown.
        citations: keys of `model_cards/citations.yaml`.
    """

    name: str
    summary: str
    facts: ModelFacts
    limits: str
    location: str = "."
    example: Example = field(default_factory=Example)
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    languages: Sequence[str] = ()
    tags: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    preprocessing: str = ""
    measured: Sequence[Results] = ()
    published: Sequence[Results] = ()
    published_note: str = ""
    training: str = ""
    recipe: str = ""
    conversion: str = ""
    citations: Sequence[str] = ("siglip",)


# ---- writing ----


def render(card: Card) -> str:
    """The whole text of a card: metadata and Markdown.

    Raises:
        ValueError: metadata that the Hub would refuse; see `check_card`.
    """
    results = [*card.measured, *card.published]
    data = ModelCardData(
        license=card.license,
        library_name="transformers",
        pipeline_tag=card.facts.task,
        base_model=card.base_model,
        datasets=list(card.datasets) or None,
        language=list(card.languages) or None,
        tags=["siglip", "siglip-ext", *card.tags],
        model_name=card.name if results else None,
        eval_results=[entry for one in results for entry in eval_results(one)] or None,
    )
    body = template("card").render(
        card=card,
        mark=mark(),
        use=use_section(card.facts, card.example, card.location),
        blocks=[results_block(one) for one in card.measured],
        nothing_measured=NOTHING_MEASURED,
        citation="\n".join(citations()[key].strip() for key in card.citations),
    )
    return with_metadata(body, data)


def with_metadata(body: str, data: ModelCardData) -> str:
    """The whole text of a card from its Markdown and its metadata; raises as `check_card`."""
    text = f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{tidy(body)}"
    check_card(text)
    return text


def mark() -> str:
    """How a card says that this package wrote it."""
    return f"siglip-ext {metadata.version('siglip-ext')} wrote this card and can rewrite its marked parts"


def write_card(folder: str | Path, card: Card) -> Path:
    """Write `README.md` into a model folder, and `.eval_results/` beside it where there are figures for it.

    Returns:
        The path of the card.

    Raises:
        ValueError: metadata that the Hub would refuse.

    Example:
        >>> write_card("out", Card(name="my-siglip", summary="…", facts=facts_of("out"), limits="…"))  # doctest: +SKIP
    """
    folder = Path(folder)
    text = render(card)
    write_eval_results(folder / EVAL_RESULTS / MEASURED, card.measured)
    write_eval_results(folder / EVAL_RESULTS / PUBLISHED, card.published)
    write_text(folder / CARD, text)
    return folder / CARD


def add_results(folder: str | Path, results: Sequence[Results]) -> Path:
    """Add figures measured with this package to the card of a folder; older ones of the same kind are replaced.

    Returns:
        The path of the card.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: a card that this package did not write, or results of a publication.
    """
    if any(one.source is not None for one in results):
        raise ValueError("only what was measured here can be added to a card")
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CARD}: training and `siglip-ext-convert from-jax` write one")
    text = path.read_text(encoding="utf-8")
    inside = re.search(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", text, flags=re.DOTALL)
    if not written_here(text) or inside is None:
        raise ValueError(f"{path} was not written by siglip-ext, so it has no place for figures")
    blocks = inside.group().replace(NOTHING_MEASURED, "")
    for one in results:
        same = re.compile(rf"<!-- result {re.escape(one.key)} -->.*?<!-- /result -->\n*", flags=re.DOTALL)
        blocks = same.sub("", blocks) + "\n" + results_block(one)
    card = ModelCard(text[: inside.start()] + blocks.strip() + "\n" + text[inside.end() :])
    added = [entry for one in results for entry in eval_results(one)]
    new = {(entry.unique_identifier, entry.metric_type) for entry in added}
    data = cast(ModelCardData, card.data)
    kept = [e for e in data.eval_results or [] if (e.unique_identifier, e.metric_type) not in new]
    data.eval_results = kept + added
    if data.model_name is None:
        title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
        data.model_name = title[1] if title else Path(folder).resolve().name
    text = tidy(str(card))
    check_card(text)
    write_eval_results(Path(folder) / EVAL_RESULTS / MEASURED, results, keep=True)
    write_text(path, text)
    return path


def card_at(folder: str | Path, location: str) -> str:
    """The card of a folder with snippets that load the model from `location`; a card of others as it is.

    Raises:
        FileNotFoundError: there is no card.
    """
    text = (Path(folder) / CARD).read_text(encoding="utf-8")
    if not written_here(text):
        return text
    section = tidy(use_section(facts_of(folder), example_of(folder), location)).strip()
    return re.sub(r"<!-- use -->.*?<!-- /use -->", lambda _: section, text, flags=re.DOTALL)


def written_here(text: str) -> bool:
    """Whether this package wrote a card."""
    return MARK.search(text) is not None


# ---- parts ----


def use_section(facts: ModelFacts, example: Example, location: str) -> str:
    """How to load the model and what to do with it: three snippets."""
    return template("use").render(facts=facts, example=example, location=location)


def results_block(results: Results) -> str:
    return tidy(template("results").render(results=results)).strip() + "\n"


@cache
def citations() -> dict[str, str]:
    return yaml.safe_load(_read("citations.yaml"))


# ---- metadata ----


def check_card(text: str) -> ModelCard:
    """Check a card's metadata as far as that goes without the Hub, which checks again when it is committed.

    Raises:
        ValueError: naming the field.
    """
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"the card's metadata is not valid: {error}") from error
    data = card.data
    for name, pattern in (("license", LICENSE), ("language", LANGUAGE)):
        found = data.get(name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
                raise ValueError(f"the card's metadata: {name} {value!r} is no identifier of the Hub")
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        raise ValueError('the card\'s metadata: license "other" needs license_name and license_link')
    sources: dict[tuple, str | None] = {}
    for result in data.get("eval_results") or []:
        if not isinstance(result.metric_value, (int, float)) or isinstance(result.metric_value, bool):
            raise ValueError(f"the card's metadata: {result.metric_type} is {result.metric_value!r}, not a number")
        if sources.setdefault(result.unique_identifier, result.source_url) != result.source_url:
            raise ValueError(
                f"the card's metadata: figures of two sources on {result.dataset_type} are not kept apart"
            )
    return card


# ---- templates ----


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _read(f"{name}.md")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["code"] = _code
    return environment


def _code(value: Any) -> str:
    """A value as Python and Markdown both take it: double quotes, and letters as they are."""
    return json.dumps(value, ensure_ascii=False)


def template(name: str) -> jinja2.Template:
    """One of `model_cards/`, by its name without the suffix."""
    return _environment().get_template(name)


def _read(file: str) -> str:
    return resources.files("modeling_siglip_ext.model_cards").joinpath(file).read_text("utf-8")


def tidy(text: str) -> str:
    """No more than one empty line in a row, and one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
