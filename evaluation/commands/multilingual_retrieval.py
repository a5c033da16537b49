"""`multilingual-retrieval`: retrieval in each language among the images that have a caption in it, and the mean."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from modeling_siglip_ext.command_line import Subparsers

from ..data import select_languages
from ..results import Result
from ..session import Session
from .arguments import evaluation_command, result_name, session_settings


def register(commands: Subparsers) -> None:
    _, data, _ = evaluation_command(
        commands,
        "multilingual-retrieval",
        run,
        summary="Retrieval in each language, and the mean over the languages.",
        description="Retrieval in each language among the images that have a caption in it, and the mean over the "
        "languages.",
    )
    data.add_argument(
        "--languages", nargs="+", metavar="NAME", help="which ones; of a dataset, the columns with their captions"
    )


def run(arguments: argparse.Namespace) -> None:
    data, of_language = select_languages(
        arguments.dataset,
        arguments.languages,
        config=arguments.config,
        split=arguments.split,
        limit=arguments.limit,
        image_column=arguments.image_column,
    )
    session = Session.open(session_settings(arguments))
    embeds, errors = session.embed_images(data)
    results: dict[str, Result] = {}
    for language, captions in of_language.items():
        # one language at a time: the captions of 36 together would take gigabytes
        own = replace(data, captions=captions)
        texts = session.embed_texts(own.texts)
        if session.first:
            results[language] = session.evaluate(own, image_embeds=embeds, text_embeds=texts, unreadable=errors)
    if not session.first:
        return
    from ..pictures.charts import language_bars

    metrics = {language: dict(result.metrics) for language, result in results.items()}
    keys = next(iter(metrics.values()))
    macro = {key: float(np.mean([own[key] for own in metrics.values()])) for key in keys}
    name = result_name(arguments)
    language_bars(Path(arguments.output_dir) / f"{name}.png", metrics)
    first = next(iter(results.values()))
    counts = replace(
        first.counts,
        evaluated=len(embeds) - len(errors),
        texts=None,
        languages={language: result.counts.evaluated or 0 for language, result in results.items()},
    )
    result = replace(first, task=arguments.command, metrics={**macro, "languages": metrics}, counts=counts)
    session.finish(result, name)
