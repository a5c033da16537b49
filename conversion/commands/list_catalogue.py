"""`list`: the catalogue of released files."""

import argparse

from modeling_siglip_ext.command_line import Subparsers, add_command

from ..model_folder.folder import auto_class, choose_form
from ..released.catalogue import Entry, entries, find


EXAMPLES = """examples:
  siglip-ext-convert list
  siglip-ext-convert list siglip2_so400m16_naflex
"""


def line(entry: Entry) -> str:
    size = "NaFlex" if entry.image_size is None else f"{entry.image_size} px"
    text = "" if entry.tokenizer is None else f"{entry.text_length} tokens, {entry.tokenizer.name}"
    score = f"{entry.scores['imagenet']:.1f}" if "imagenet" in entry.scores else ""
    return f"{entry.name:40} {entry.image:10} {size:7} {text:18} {score:>5}"


def details(entry: Entry) -> str:
    size = "any size (NaFlex)" if entry.image_size is None else f"{entry.image_size} px"
    config, stock = choose_form(entry.config(), None)
    rows = {
        "name": entry.name,
        "released at": entry.url or "Kaggle and the Hub, after consent to the licence",
        "also called": ", ".join(entry.aliases),
        "licence": entry.licence or "unknown: the release names none for the weights",
        "image tower": f"{entry.image}, {size}",
        "text tower": "" if entry.text is None else f"{entry.text}, {entry.text_length} tokens",
        "tokenizer": "" if entry.tokenizer is None else f"{entry.tokenizer.name}, as in {entry.tokenizer.repo}",
        "becomes": f"{auto_class(config, stock)}, {'stock form' if stock else 'our form'}",
        "parameters": f"{entry.parameters:,}" if isinstance(entry.parameters, int) else entry.parameters or "",
        "published": ", ".join(f"{key} {value}" for key, value in entry.scores.items()),
    }
    return "\n".join(f"{key:12} {value}" for key, value in rows.items() if value)


def register(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "list",
        run,
        summary="the released files",
        description="Show the catalogue of released files; the last column is the published ImageNet accuracy.",
        examples=EXAMPLES,
    )
    parser.add_argument("name", nargs="?", help="show all that is known about one file")


def run(arguments: argparse.Namespace) -> None:
    if arguments.name is not None:
        print(details(find(arguments.name)))
        return
    family = None
    for entry in entries().values():
        if entry.family != family:
            family = entry.family
            print(f"\n{family}")
        print(f"  {line(entry)}".rstrip())
