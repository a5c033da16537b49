"""`caption`: what a decoder writes to images, in a JSON file and on a sheet."""

import argparse
from pathlib import Path

from modeling_siglip_ext.captioning import Sampling, caption, load_decoder
from modeling_siglip_ext.command_line import Subparsers, add_command, refuse_unused
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.inputs import files_below

from .arguments import add_model, open_session


def register(commands: Subparsers) -> None:
    summary = "Captions of images by a decoder that was trained on the model's image tower."
    parser = add_command(commands, "caption", run, summary=summary)
    parser.usage = "%(prog)s --model MODEL --decoder FOLDER --images PATH [PATH ...] [options]"
    add_model(parser, embeddings=False)
    parser.add_argument("--decoder", required=True, metavar="FOLDER", help="written by save_decoder")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="images, and folders of them")
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
    paths, unreadable = readable([path for name in arguments.images for path in paths_in(name)])
    decoder, session = load_decoder(arguments.decoder), open_session(arguments)
    if not session.first:
        return
    decoder.to(session.model.device, session.model.dtype)
    found = caption(
        session.model, decoder, session.processor, paths, batch_size=arguments.batch_size, sampling=sampling
    )
    folder = Path(arguments.output_dir)
    rows = [{"image": str(path), "caption": text} for path, text in zip(paths, found)]
    write_json(folder / "captions.json", [*rows, *unreadable])
    if arguments.shown > 0:
        shown = paths[: arguments.shown]
        box_sheet(folder / "captions.png", shown, found[: len(shown)], [[]] * len(shown), title="Captions")
    for path, text in zip(paths, found):
        print(f"{path}: {text}")
    for row in unreadable:
        print(f"left out: {row['error']}")


def paths_in(name: str) -> list[Path]:
    """An image, or the images of a folder.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    path = Path(name)
    if path.is_dir():
        return files_below(path, "image")
    if not path.is_file():
        raise FileNotFoundError(f"--images: there is no {name}")
    return [path]


def readable(paths: list[Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """The paths of images that can be read, and rows that say of the others why not; before a decoder is at work.

    Raises:
        ValueError: none can be read.
    """
    kept, left_out = [], []
    for path in paths:
        try:
            load_image(path)
            kept.append(path)
        except UnreadableImageError as error:
            left_out.append({"image": str(path), "error": str(error)})
    if not kept:
        raise ValueError(f"none of the {len(paths)} images can be read: {left_out[0]['error']}")
    return kept, left_out


def sampling_of(arguments: argparse.Namespace) -> Sampling | None:
    """How words are drawn; None where no option asks for it."""
    if arguments.temperature is None and arguments.top_k is None and arguments.top_p is None:
        refuse_unused(arguments, ["seed"], "where nothing is drawn, without --temperature, --top_k and --top_p")
        return None
    temperature = 1.0 if arguments.temperature is None else arguments.temperature
    return Sampling(temperature, arguments.top_k, arguments.top_p, arguments.seed or 0)
