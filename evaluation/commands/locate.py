"""`locate`: the boxes of phrases in an image, in a JSON file and drawn on the image."""

import argparse
from pathlib import Path

from modeling_siglip_ext.captioning import locate_all
from modeling_siglip_ext.command_line import Subparsers, add_command
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.images import load_image

from .arguments import add_decoder, open_decoder, passes_of


def register(commands: Subparsers) -> None:
    summary = "The box of what each phrase refers to in an image, by a decoder trained on the model's image tower."
    parser = add_command(commands, "locate", run, summary=summary)
    parser.usage = "%(prog)s --model MODEL --decoder FOLDER --image FILE --phrases TEXT [TEXT ...] [options]"
    add_decoder(parser)
    parser.add_argument("--image", required=True, metavar="FILE", help="an image")
    parser.add_argument("--phrases", required=True, nargs="+", metavar="TEXT", help="what to find")
    parser.add_argument("--output_dir", default="boxes", metavar="FOLDER", help="for boxes.json and boxes.png")


def run(arguments: argparse.Namespace) -> None:
    from ..pictures.boxes import DrawnBox, box_sheet

    image = load_image(arguments.image)
    session, decoder, path, weights = open_decoder(arguments, "boxes.json")
    if not session.first:
        return
    images, phrases = [image] * len(arguments.phrases), arguments.phrases
    found = locate_all(session.model, decoder, session.processor, images, phrases, **passes_of(arguments))
    rows = [{"phrase": phrase, "box": box} for phrase, box in zip(phrases, found)]
    write_json(path, {"weights": weights, "image": arguments.image, "size": image.size, "boxes": rows})
    drawn = [DrawnBox(box, phrase) for phrase, box in zip(phrases, found) if box is not None]
    box_sheet(path.with_suffix(".png"), [image], [Path(arguments.image).name], [drawn], title="Boxes")
    for phrase, box in zip(phrases, found):
        place = "no box" if box is None else ", ".join(f"{side:.0f}" for side in box)
        print(f"{phrase}: {place}")
