"""`retrieval`: captions of images, and images of captions."""

import argparse
from itertools import accumulate
from pathlib import Path

import torch
from torch.nn import functional as F

from modeling_siglip_ext.command_line import Subparsers
from modeling_siglip_ext.images import load_image

from ..data import EvaluationData
from ..session import Session
from .arguments import evaluation_command, result_name, select_data, session_settings


def register(commands: Subparsers) -> None:
    summary = "Recall@1, 5 and 10 of both directions, with any number of captions an image."
    _, data, own = evaluation_command(commands, "retrieval", run, summary=summary)
    data.add_argument("--caption_column", metavar="NAME", help="column with one caption or several")
    own.add_argument(
        "--sheet", type=int, default=200, metavar="N", help="images among which the picture retrieves; 0: no picture"
    )


def run(arguments: argparse.Namespace) -> None:
    data = select_data(arguments)
    session = Session.open(session_settings(arguments))
    embeds, errors = session.embed_images(data)
    texts = session.embed_texts(data.texts)
    if not session.first:
        return
    result = session.evaluate(data, image_embeds=embeds, text_embeds=texts, unreadable=errors)
    name = result_name(arguments)
    if arguments.sheet:
        rows = [row for row in range(len(embeds)) if row not in errors][: arguments.sheet]
        draw_sheet(Path(arguments.output_dir) / f"{name}.png", data, rows, embeds, texts)
    session.finish(result, name)


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
