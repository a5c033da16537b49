"""`caption`: what a decoder writes to images, in a JSON file and on a sheet."""

import argparse
from pathlib import Path

from PIL import Image

from modeling_siglip_ext.captioning import Sampling, caption
from modeling_siglip_ext.command_line import Subparsers, add_command, refuse_unused
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.inputs import files_below

from .arguments import add_decoder, open_decoder, passes_of


def register(commands: Subparsers) -> None:
    summary = "Captions of images by a decoder that was trained on the model's image tower."
    parser = add_command(commands, "caption", run, summary=summary)
    parser.usage = "%(prog)s --model MODEL --decoder FOLDER --images PATH [PATH ...] [options]"
    add_decoder(parser)
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="PATH", help="images, their URLs, and folders of them"
    )
    own = parser.add_argument_group("drawing words, instead of taking the likeliest")
    own.add_argument("--temperature", type=float, help="below 1 likely words become likelier")
    own.add_argument("--top_k", type=int, metavar="N", help="draw among this many likeliest words")
    own.add_argument("--top_p", type=float, help="draw among the likeliest words that add up to this probability")
    own.add_argument("--seed", type=int, help="of the draws (default: 0)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir", default="captions", metavar="FOLDER", help="for captions.json and captions.png"
    )
    output.add_argument("--shown", type=int, default=24, metavar="N", help="images on the sheet")


def run(arguments: argparse.Namespace) -> None:
    from ..pictures.boxes import box_sheet

    sampling = sampling_of(arguments)
    if arguments.shown < 0:
        raise ValueError(f"--shown must not be negative, got {arguments.shown}; 0 draws no sheet")
    names, images, unreadable = readable([path for name in arguments.images for path in paths_in(name)])
    session, decoder, path, weights = open_decoder(arguments, "captions.json")
    if not session.first:
        return
    found = caption(session.model, decoder, session.processor, images, sampling=sampling, **passes_of(arguments))
    rows = [{"image": name, "caption": text} for name, text in zip(names, found)]
    write_json(path, {"weights": weights, "captions": [*rows, *unreadable]})
    if arguments.shown > 0:
        shown = images[: arguments.shown]
        box_sheet(path.with_suffix(".png"), shown, found[: len(shown)], [[]] * len(shown), title="Captions")
    for name, text in zip(names, found):
        print(f"{name}: {text}")
    for row in unreadable:
        print(f"left out: {row['error']}")


def paths_in(name: str) -> list[str]:
    """An image, its URL, or the images of a folder.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    path = Path(name)
    if path.is_dir():
        return [str(file) for file in files_below(path, "image")]
    if not path.is_file() and not name.startswith(("http://", "https://")):
        raise FileNotFoundError(f"--images: there is no {name}")
    return [name]


def readable(names: list[str]) -> tuple[list[str], list[str | Image.Image], list[dict[str, str]]]:
    """Names of images that can be read, what they are read from, and rows that say of the others why not; before a
    decoder is at work. What came from a URL is kept.

    Raises:
        ValueError: none can be read.
    """
    kept, images, left_out = [], [], []
    for name in names:
        try:
            image = load_image(name)
            kept.append(name)
            images.append(name if Path(name).is_file() else image)
        except UnreadableImageError as error:
            left_out.append({"image": name, "error": str(error)})
    if not kept:
        raise ValueError(f"none of the {len(names)} images can be read: {left_out[0]['error']}")
    return kept, images, left_out


def sampling_of(arguments: argparse.Namespace) -> Sampling | None:
    """How words are drawn; None where no option asks for it."""
    if arguments.temperature is None and arguments.top_k is None and arguments.top_p is None:
        refuse_unused(arguments, ["seed"], "where nothing is drawn, without --temperature, --top_k and --top_p")
        return None
    temperature = 1.0 if arguments.temperature is None else arguments.temperature
    return Sampling(temperature, arguments.top_k, arguments.top_p, arguments.seed or 0)
