"""`duplicates`: images or texts so similar that they may be the same, from a folder that `embed` wrote."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command
from modeling_siglip_ext.embedding_blocks import StoredBlocks, open_blocks
from modeling_siglip_ext.files import check_output_file

from ..data import Provenance
from ..metrics.connected import Group
from ..metrics.duplicates import find_duplicates
from ..results import Counts, Result, write_result


SHOWN_GROUPS, SHOWN_ROWS = 50, 8


def register(commands: Subparsers) -> None:
    summary = "Groups of images or texts so similar that they may be the same, from a folder that `embed` wrote."
    parser = add_command(commands, "duplicates", run, summary=summary)
    parser.add_argument("--embeddings", required=True, metavar="FOLDER", help="folder written by embed")
    parser.add_argument("--threshold", type=float, default=0.95, help="cosine from which two are duplicates")
    parser.add_argument("--output_file", default="duplicates.json", metavar="FILE", help="the groups")


def run(arguments: argparse.Namespace) -> None:
    check_output_file(arguments.output_file, "--output_file")
    stored = open_blocks(arguments.embeddings)
    found = find_duplicates(stored, arguments.threshold)
    odd = sorted(set(found.without_direction) - stored.errors.keys())
    in_groups = sum(len(group.rows) for group in found.groups)
    result = Result(
        "duplicates",
        {"groups": len(found.groups), "in_groups": in_groups, "pairs": found.pairs, "rows": stored.rows},
        dataset=Provenance(arguments.embeddings),
        counts=Counts(unreadable=sorted(stored.errors)),
        settings={"threshold": arguments.threshold},
        groups=[
            {
                "rows": group.rows,
                "names": [stored.names[row] for row in group.rows],
                "pairs": group.pairs,
                "least_cosine": group.least_cosine,
            }
            for group in found.groups
        ],
    )
    write_result(arguments.output_file, result)
    print_groups(found.groups, stored)
    if stored.errors or odd:
        print(f"left out: {len(stored.errors)} unreadable rows, {len(odd)} whose embedding is zero or not finite")
    print(f"{in_groups} of {stored.rows} in {len(found.groups)} groups: {arguments.output_file}")


def print_groups(groups: list[Group], stored: StoredBlocks) -> None:
    """The first groups and their first rows; all of them are in the file."""
    for group in groups[:SHOWN_GROUPS]:
        names = [stored.names[row] or str(row) for row in group.rows[:SHOWN_ROWS]]
        more = len(group.rows) - len(names)
        print("  ".join(names) + (f"  and {more} more" if more else ""))
    if len(groups) > SHOWN_GROUPS:
        print(f"and {len(groups) - SHOWN_GROUPS} more groups")
