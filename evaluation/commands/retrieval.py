"""`retrieval`: captions of images, and images of captions; `multilingual-retrieval`: the same in each language."""

import argparse
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from modeling_siglip_ext.command_line import Subparsers, refuse_unused
from modeling_siglip_ext.images import load_image

from ..data import EvaluationData, select_languages
from ..results import Result
from .arguments import evaluation_command, open_session, result_path, select_data
from .lengths import by_length, draw


SHEET = 200
WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def register(commands: Subparsers) -> None:
    summary = "Recall@1, 5 and 10 of both directions, with any number of captions an image."
    data, own = evaluation_command(commands, "retrieval", run, summary)
    data.add_argument("--caption_column", metavar="NAME", help="column with one caption or several")
    own.add_argument(
        "--sheet", type=int, metavar="N", help="images among which the picture retrieves (default: 200); 0: no picture"
    )
    summary = "Retrieval in each language among the images that have a caption in it, and the mean over the languages."
    data, _ = evaluation_command(commands, "multilingual-retrieval", run_multilingual, summary)
    data.add_argument(
        "--languages", nargs="+", metavar="NAME", help="which ones; of a dataset, the columns with their captions"
    )


def run(arguments: argparse.Namespace) -> None:
    sheet = SHEET if arguments.sheet is None else arguments.sheet
    if sheet < 0:
        raise ValueError(f"--sheet must not be negative, got {sheet}; 0 draws no picture")
    if len(set(arguments.lengths or ())) > 1:
        refuse_unused(arguments, ["sheet"], "with several --max_num_patches, whose figures are drawn")
    data = select_data(arguments)
    session = open_session(arguments)
    sessions = session.by_length(arguments.lengths)
    texts = session.embed_texts(data.texts)
    results = {}
    for length, one in sessions.items():
        embeds, errors = one.embed_images(data)
        if session.first:
            results[length] = one.evaluate(data, image_embeds=embeds, text_embeds=texts, unreadable=errors)
    if not session.first:
        return
    path = result_path(arguments, ".png")
    result = next(iter(results.values()))
    if len(results) > 1:
        result = by_length(results)
        draw(path, results, {f"{way}_recall@1": f"{title}, R@1" for way, title in WAYS.items()})
    elif sheet:
        rows = [row for row, own in enumerate(data.captions or ()) if own and row not in errors][:sheet]
        draw_sheet(path, data, rows, embeds, texts)
    one.finish(result, result_path(arguments))


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
