"""The cards of converted models: what is known of a released file, and what the conversion found."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from modeling_siglip_ext.hub.card import Card
from modeling_siglip_ext.hub.facts import ModelFacts, facts_of
from modeling_siglip_ext.hub.results import TASKS, Figure, Results

from ..model_folder.report import ConversionReport, Origin
from .catalogue import Entry, entries


TOKENIZERS = {
    "v1": "Texts are lower-cased and cut with the {name} vocabulary of big_vision ({size:,} pieces); the tokenizer of "
    "transformers also strips punctuation, which big_vision leaves to whoever writes the prompts.",
    "v2": "Texts are lower-cased and cut with the Gemma vocabulary ({size:,} tokens).",
    "bert": "Texts are lower-cased and cut with the vocabulary of BERT ({size:,} pieces).",
}
RESIZING = (
    "Resizing is bilinear. The original code resized without antialiasing, Pillow does it with, so vectors of images "
    "that are made much smaller differ a little."
)


@cache
def texts() -> dict[str, Any]:
    path = resources.files("modeling_siglip_ext.conversion.released").joinpath("cards.yaml")
    return yaml.safe_load(path.read_text("utf-8"))


def sentences(*parts: str | None) -> str:
    return " ".join(filter(None, parts))


def conversion_card(folder: Path, name: str, report: ConversionReport, resample: str = "bilinear") -> Card:
    """The card of a folder that a conversion wrote.

    Args:
        folder: The model folder.
        name: The model's.
        report: What `conversion_report.json` says.
        resample: Of the image processor.
    """
    facts = facts_of(folder)
    entry = entries().get(report.catalogue or "")
    if entry is None:
        return Card(
            name=name,
            summary=f"A SigLIP model converted from `{origin_of(report).name}` by `siglip-ext`.",
            facts=facts,
            limits="Nothing is known here of what it was trained on, nor what its limits and biases are.",
            license=report.licence,
            preprocessing=f"Resizing is {resample}.",
            conversion=report_text(report),
        )
    return released_card(entry, facts, name=name, report=report)


def released_card(entry: Entry, facts: ModelFacts, *, name: str, report: ConversionReport | None = None) -> Card:
    """The card of a released file.

    Args:
        facts: Of the model that it becomes.
        name: Of the folder.
        report: Of the conversion; None for a file that was not converted.
    """
    family = texts()["families"][entry.family]
    size = "any aspect ratio" if facts.naflex else f"{facts.image_size} px"
    changed = bool(report and report.changes)  # what was published holds for other weights
    note = "" if changed else family.get("published_note", "")
    return Card(
        name=f"{family['title']} {entry.image}, {size}{variant(entry)}",
        summary=sentences(summary(entry), origin(entry), parameters(entry)),
        facts=facts,
        limits=sentences(family.get("limits"), limits(entry)),
        location="." if report else name,
        license=entry.licence,
        languages=languages(entry),
        tags=[entry.family],
        preprocessing=preprocessing(entry),
        published=() if changed else published(entry),
        published_note=sentences(note, "They are of the original file."),
        conversion=report_text(report) if report else command_text(entry, name),
        citations=family["citations_2" if second_paligemma(entry) else "citations"],
    )


def published(entry: Entry) -> list[Results]:
    """The published figures, one for each line of the tables."""
    family = texts()["families"][entry.family]
    source = family.get("source_naflex" if entry.image_size is None else "source")
    found = []
    for key, value in entry.scores.items():
        dataset, dataset_id, split, task, label, metric = texts()["scores"][key]
        kind, task_name = TASKS[task]
        figure = Figure(label if task != "zero-shot" else f"zero-shot {label}", metric, value / 100)
        found.append(
            Results(dataset, dataset_id, (figure,), kind, task_name=task_name, split=split, source=tuple(source))
        )
    return found


def second_paligemma(entry: Entry) -> bool:
    return entry.family == "paligemma" and any(alias.startswith("paligemma2") for alias in entry.aliases)


def variant(entry: Entry) -> str:
    """What tells files of one size apart."""
    if entry.family in ("clippo", "paligemma", "lit"):
        return f" ({next((alias for alias in entry.aliases if '*' not in alias), shown(entry))})"
    return ", multilingual" if "i18n" in entry.name else ""


def shown(entry: Entry) -> str:
    """The name where one is needed that stands for a single file."""
    return entry.name.replace("*", "TASK")


def summary(entry: Entry) -> str:
    family = texts()["families"][entry.family]
    text = family["summary"]
    if entry.family == "siglip":
        i18n = "i18n" in entry.name
        return text.format(languages_clause=", in many languages" if i18n else ", with the English texts of it")
    if entry.family == "lit":
        return text.format(data=family["data_coco" if entry.name.startswith("coco") else "data"])
    if entry.family == "clippo":
        share = entry.name.rpartition("_")[2]
        share = share.removesuffix("c4") if share.endswith("c4") else None
        data = "YFCC-100M" if share is None else "C4" if share == "100" else f"YFCC-100M with {share} % of C4"
        return text.format(data=data)
    if entry.family == "paligemma":
        return text.format(model="PaliGemma 2" if second_paligemma(entry) else "PaliGemma")
    return text


def origin(entry: Entry) -> str:
    where = f"`{entry.url}`" if entry.url else f"`{shown(entry)}.npz`, which is released to those who accept its terms"
    task = " TASK stands for the task that the model was fine-tuned on." if "*" in entry.name else ""
    return f"The original is {where}, a checkpoint in big_vision's format.{task}"


def parameters(entry: Entry) -> str:
    if entry.parameters is None:
        return ""
    exact = isinstance(entry.parameters, int)
    count = f"{entry.parameters / 1e6:,.1f}" if exact else entry.parameters.removesuffix("M")
    what = "Without the projection it has" if entry.family == "paligemma" else "It has"
    return f"{what} {count} million parameters."


def limits(entry: Entry) -> str:
    holds = {"data": True, "scores_of_pairs": entry.text, "no_licence": not entry.licence, "unmeasured": entry.scores}
    return sentences(*(texts()[key] for key, said in holds.items() if said))


def languages(entry: Entry) -> list[str]:
    family = texts()["families"][entry.family]
    return [] if entry.text is None else family["languages_i18n" if "i18n" in entry.name else "languages"]


def preprocessing(entry: Entry) -> str:
    own, known = texts()["families"][entry.family].get("preprocessing"), entry.tokenizer
    tokenizer = TOKENIZERS[known.rules].format(name=known.name, size=known.vocab_size) if known else ""
    resizing = RESIZING if entry.family in ("siglip", "siglip2") else "Resizing is bilinear."
    return sentences(tokenizer, "" if entry.image_size is None else resizing, own)


def command_text(entry: Entry, name: str) -> str:
    return (
        "Made by\n\n"
        f"```bash\nsiglip-ext-convert from-jax {entry.url or f'{shown(entry)}.npz'} {name}\n```\n\n"
        "which compares every tensor with its source and writes into this place what it found. This page was written "
        "without the file at hand, so it has no such report."
    )


def report_text(report: ConversionReport) -> str:
    source, versions = origin_of(report), report.libraries
    lines = [
        f"Converted from `{source.name}` (SHA-256 `{source.sha256}`) to `{report.class_name}`, "
        f"{report.dtype}, {report.parameters:,} parameters, with siglip-ext {versions['siglip-ext']}, torch "
        f"{versions['torch']} and transformers {versions['transformers']}.",
        f"All {len(report.tensors)} tensors were mapped back and compared with their source: the largest "
        f"difference is {report.largest_difference:.3g}. `conversion_report.json` lists them.",
    ]
    changes = [f"- {change}" for change in report.changes]
    if changes:
        lines += ["\nChanged on purpose, so figures of the original do not hold:\n", *changes, ""]
    for what, names in report.left_out.items():
        lines.append(f"Left out, {what}: {len(names)} arrays.")
    if report.nonfinite:
        lines.append(f"**Values that are not finite:** {', '.join(report.nonfinite)}.")
    return "\n".join(lines)


def origin_of(report: ConversionReport) -> Origin:
    if report.source is None:
        raise ValueError("the report of a folder that was not converted has no place in a card")
    return report.source
