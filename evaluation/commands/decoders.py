"""What the commands that let a decoder write have in common: its option, and its opening beside the model."""

import argparse
from pathlib import Path
from typing import NamedTuple

from modeling_siglip_ext.captioning import CaptionDecoder, load_decoder
from modeling_siglip_ext.command_line import Parser
from modeling_siglip_ext.embedding_store import weights_fingerprint
from modeling_siglip_ext.files import read_json

from ..session import Session
from .arguments import add_model, open_session


class Opened(NamedTuple):
    """A decoder beside its model, the file that will say what it wrote, and the weights that the file is to name."""

    session: Session
    decoder: CaptionDecoder
    path: Path
    weights: dict[str, str]


def add_decoder(parser: Parser) -> None:
    add_model(parser, embeddings=False)
    parser.add_argument("--decoder", required=True, metavar="FOLDER", help="written by save_decoder")


def open_decoder(arguments: argparse.Namespace, file: str) -> Opened:
    """
    Args:
        file: in the output folder.

    Raises:
        OSError, ValueError: as `load_decoder` and `open_session`.
        FileExistsError: the file of a model or decoder with other weights is there, and would be lost.
    """
    decoder, session = load_decoder(arguments.decoder), open_session(arguments)
    path = Path(arguments.output_dir) / file
    weights = {"model": session.weights, "decoder": weights_fingerprint(decoder)}
    if path.is_file() and read_json(path, "choose another --output_dir").get("weights") != weights:
        raise FileExistsError(f"{path} is of another model or decoder: choose another --output_dir")
    return Opened(session, decoder.to(session.model.device, session.model.dtype), path, weights)
