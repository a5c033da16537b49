"""`threshold`: the cosine from which an image and a text count as matched."""

import argparse

import numpy as np
import torch
from torch.nn import functional as F

from modeling_siglip_ext.command_line import Subparsers, refuse_unused

from ..metrics.similarity import calibrate_threshold
from ..results import Counts, Result
from .arguments import evaluation_command, open_session, result_path, select_data


def register(commands: Subparsers) -> None:
    summary = "Calibrate the cosine from which an image and a text count as matched."
    data, own = evaluation_command(commands, "threshold", run, summary)
    data.add_argument("--caption_column", metavar="NAME", help="column with captions; of several the first counts")
    data.add_argument(
        "--label_column", metavar="NAME", help="1 for a matched pair, 0 for another; without it texts are shuffled"
    )
    own.add_argument("--precision", type=float, help="the most recall at this precision, instead of the best F1")
    own.add_argument("--seed", type=int, help="draws the shuffled pairs (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.label_column:
        refuse_unused(arguments, ["seed"], "with --label_column, where no pairs are drawn")
    seed = arguments.seed or 0
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    if arguments.precision is not None and not 0 < arguments.precision <= 1:
        raise ValueError(f"--precision is a share above 0 and at most 1, got {arguments.precision}")
    data = select_data(arguments)
    assert data.captions is not None
    texts = [own[0] if own else "" for own in data.captions]
    session = open_session(arguments)
    embeds, errors = session.embed_images(data)
    text_embeds = session.embed_texts(texts)
    if not session.first:
        return
    kept = torch.tensor([row for row in range(len(embeds)) if row not in errors and data.captions[row]])
    if not len(kept):
        raise ValueError("none of the images with a caption can be read")
    images, text_embeds = F.normalize(embeds[kept], dim=-1), F.normalize(text_embeds[kept], dim=-1)
    similarities = (images * text_embeds).sum(1)
    if data.labels is not None:
        matched = np.array([data.labels[row][0] for row in kept.tolist()], bool)
    else:
        # each image with another row's text, shifted by a random number of rows; equal texts are no mismatch
        shift = int(np.random.default_rng(seed).integers(1, max(2, len(kept))))
        others = torch.arange(len(kept)).roll(shift)
        wrong = [texts[a] != texts[b] for a, b in zip(kept.tolist(), kept[others].tolist())]
        unmatched = (images * text_embeds[others]).sum(1)[torch.tensor(wrong)]
        matched = np.concatenate([np.ones(len(similarities), bool), np.zeros(len(unmatched), bool)])
        similarities = torch.cat((similarities, unmatched))
    metrics = calibrate_threshold(similarities.numpy(), matched, precision=arguments.precision)
    probability = probability_at(session.model, metrics["threshold"])
    if probability is not None:
        metrics["probability_at_threshold"] = probability
    from ..pictures.charts import similarity_histogram

    similarity_histogram(result_path(arguments, ".png"), similarities.numpy(), matched, metrics["threshold"])
    result = Result(
        arguments.command,
        metrics,
        dataset=data.provenance,
        counts=Counts(pairs=len(matched), matched=int(matched.sum()), unreadable=sorted(errors)),
        settings={"precision": arguments.precision, "seed": seed if data.labels is None else None},
    )
    session.finish(result, result_path(arguments))


def probability_at(model: torch.nn.Module, threshold: float) -> float | None:
    """What the model's sigmoid says at a cosine; None for a model without scale or bias, whose loss is another."""
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    if scale is None or bias is None:
        return None
    logit = torch.tensor(threshold * scale.exp().item() + bias.item(), dtype=torch.float64)
    return logit.sigmoid().item()
