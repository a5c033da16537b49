"""`retrieval`: captions of images, and images of captions; `multilingual-retrieval`: the same in each language."""

import argparse
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from modeling_siglip_ext.command_line import Subparsers
from modeling_siglip_ext.images import load_image

from ..data import EvaluationData, select_languages
from ..results import Result
from .arguments import evaluation_command, open_session, result_path, select_data


def register(commands: Subparsers) -> None:
    summary = "Recall@1, 5 and 10 of both directions, with any number of captions an image."
    data, own = evaluation_command(commands, "retrieval", run, summary)
    data.add_argument("--caption_column", metavar="NAME", help="column with one caption or several")
    own.add_argument(
        "--sheet", type=int, default=200, metavar="N", help="images among which the picture retrieves; 0: no picture"
    )
    summary = "Retrieval in each language among the images that have a caption in it, and the mean over the languages."
    data, _ = evaluation_command(commands, "multilingual-retrieval", run_multilingual, summary)
    data.add_argument(
        "--languages", nargs="+", metavar="NAME", help="which ones; of a dataset, the columns with their captions"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.sheet < 0:
        raise ValueError(f"--sheet must not be negative, got {arguments.sheet}; 0 draws no picture")
    data = select_data(arguments)
    session = open_session(arguments)
    embeds, errors = session.embed_images(data)
    texts = session.embed_texts(data.texts)
    if not session.first:
        return
    result = session.evaluate(data, image_embeds=embeds, text_embeds=texts, unreadable=errors)
    if arguments.sheet:
        rows = [row for row, own in enumerate(data.captions or ()) if own and row not in errors][: arguments.sheet]
        draw_sheet(result_path(arguments, ".png"), data, rows, embeds, texts)
    session.finish(result, result_path(arguments))


def draw_sheet(
    path: Path, data: EvaluationData, rows: list[int], image_embeds: torch.Tensor, text_embeds: torch.Tensor
) -> None:
    """The picture of what some rows retrieve among one another, with the first caption of each."""
    from ..pictures.retrieval_sheet import retrieval_contact_sheet

    assert data.captions is not None
    firsts = [0, *accumulate(map(len, data.captions))]
    retrieval_contact_sheet(
        path,
        [load_image(row[data.image_column]) for row in data.images.select(rows)],
        [data.captions[row][0] for row in rows],
        F.normalize(image_embeds[rows], dim=-1),
        F.normalize(text_embeds[[firsts[row] for row in rows]], dim=-1),
        title=f"Retrieval among the first {len(rows)} images, one caption each",
    )


def run_multilingual(arguments: argparse.Namespace) -> None:
    data, of_language = select_languages(
        arguments.dataset,
        arguments.languages,
        config=arguments.config,
        split=arguments.split,
        separator=arguments.separator,
        limit=arguments.limit,
        image_column=arguments.image_column,
    )
    session = open_session(arguments)
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
    language_bars(result_path(arguments, ".png"), metrics)
    first = next(iter(results.values()))
    counts = replace(
        first.counts,
        evaluated=len(embeds) - len(errors),
        texts=None,
        languages={language: result.counts.evaluated or 0 for language, result in results.items()},
    )
    result = replace(first, task=arguments.command, metrics={**macro, "languages": metrics}, counts=counts)
    session.finish(result, result_path(arguments))
