"""`duplicates`: images so similar that they may be the same, from a folder that `embed` wrote."""

import argparse

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.command_line import Subparsers, add_command

from ..data import Provenance
from ..metrics.similarity import duplicate_groups, duplicate_pairs
from ..results import Counts, Result, write_result


def register(commands: Subparsers) -> None:
    summary = "Groups of images so similar that they may be the same, from a folder that `embed` wrote."
    parser = add_command(commands, "duplicates", run, summary=summary)
    parser.add_argument("--embeddings", required=True, metavar="FOLDER", help="folder written by embed")
    parser.add_argument("--threshold", type=float, default=0.95, help="cosine from which two are duplicates")
    parser.add_argument("--output_file", default="duplicates.json", metavar="FILE", help="the groups")


def run(arguments: argparse.Namespace) -> None:
    embeds, errors, names = store.read(arguments.embeddings)
    pairs, scores = duplicate_pairs(embeds, arguments.threshold)
    groups = duplicate_groups(pairs, len(embeds))
    score_of = {(int(a), int(b)): float(score) for (a, b), score in zip(pairs, scores)}
    least = [min(score for (a, b), score in score_of.items() if a in group and b in group) for group in groups]
    in_groups = sum(map(len, groups))
    result = Result(
        "duplicates",
        {"groups": len(groups), "in_groups": in_groups, "rows": len(embeds)},
        dataset=Provenance(arguments.embeddings),
        counts=Counts(unreadable=sorted(errors)),
        settings={"threshold": arguments.threshold},
        groups=[
            {"rows": group, "names": [names[row] for row in group], "least_cosine": cosine}
            for group, cosine in zip(groups, least)
        ],
    )
    write_result(arguments.output_file, result)
    for group in groups:
        print("  ".join(names[row] or str(row) for row in group))
    print(f"{in_groups} of {len(embeds)} in {len(groups)} groups: {arguments.output_file}")
