"""`embed`: embeddings of many images, videos or texts in a folder, for search."""

import argparse
from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging

from modeling_siglip_ext.command_line import Subparsers, add_command, refuse_unused
from modeling_siglip_ext.embedding_blocks import open_blocks
from modeling_siglip_ext.embedding_store import fingerprint
from modeling_siglip_ext.inputs import files_below
from modeling_siglip_ext.search_index import check_kind, write_index
from modeling_siglip_ext.video_frames import Sampling, pyav

from ..data import columns, load
from ..data.classes import read_lines_or_json
from ..session import Files, Inputs
from .arguments import add_columns, add_model, open_session


logger = logging.get_logger(__name__)


def register(commands: Subparsers) -> None:
    summary = (
        "Embeddings of many images, videos or texts in a folder of Parquet or safetensors files; goes on where it was "
        "stopped."
    )
    parser = add_command(commands, "embed", run, summary=summary)
    parser.usage = (
        "%(prog)s --model MODEL (--images FOLDER | --videos FOLDER | --texts FILE | --dataset DATASET) "
        "--output_dir FOLDER [options]"
    )
    add_model(parser)
    data = parser.add_argument_group("data, one of the first four")
    data.add_argument(
        "--images", metavar="FOLDER", help="all images in it and below; run again, it embeds what is new or changed"
    )
    data.add_argument("--videos", metavar="FOLDER", help="all videos in it and below, as images (with PyAV)")
    data.add_argument("--texts", metavar="FILE", help="one text a line, or a JSON list")
    data.add_argument("--dataset", help="name on the Hub, file or folder")
    add_columns(data)
    data.add_argument("--caption_column", metavar="NAME", help="embed the texts of this column, not the images")
    data.add_argument(
        "--check_contents",
        action="store_true",
        default=None,
        help="read files, too, whose size and time of change are as they were in the last run",
    )
    videos = parser.add_argument_group("videos")
    videos.add_argument(
        "--frames_per_second", type=float, metavar="N", help="how many frames are seen of a second (default: 1)"
    )
    videos.add_argument(
        "--interval", type=float, metavar="SECONDS", help="a vector each so many seconds (default: one of the video)"
    )
    own = parser.add_argument_group("output")
    own.add_argument("--output_dir", required=True, metavar="FOLDER", help="where the embeddings go")
    own.add_argument("--format", choices=("parquet", "safetensors"), default="parquet", help="of the files")
    own.add_argument(
        "--index",
        nargs="?",
        const="Flat",
        metavar="KIND",
        help="write a FAISS index beside them: Flat (exact) where no kind is named, or what its index factory knows",
    )


def inputs_of(arguments: argparse.Namespace) -> Inputs | Files:
    """The inputs that the arguments name.

    Raises:
        ValueError: none, or several, or options that nothing of them reads.
    """
    given = (arguments.images, arguments.videos, arguments.texts, arguments.dataset)
    if sum(value is not None for value in given) != 1:
        raise ValueError("give one of --images, --videos, --texts and --dataset")
    if arguments.dataset is None:
        unread = ("config", "split", "separator", "image_column", "caption_column")
        refuse_unused(arguments, unread, "without --dataset")
    elif Path(arguments.dataset).exists():
        refuse_unused(arguments, ["config"], "with a file or a folder")
    if arguments.texts is not None or arguments.caption_column:
        unread = ("image_column", "workers", "max_num_patches", "upscale", "batch_tokens")
        refuse_unused(arguments, unread, "where texts are embedded")
    if arguments.videos is not None:
        pyav()  # missing, it is missed before anything is computed
        per_second = 1.0 if arguments.frames_per_second is None else arguments.frames_per_second
        return files_in(arguments, "video", Sampling(per_second, arguments.interval))
    refuse_unused(arguments, ["frames_per_second", "interval"], "without --videos")
    if arguments.images is not None:
        return files_in(arguments, "image")
    refuse_unused(arguments, ["check_contents"], "without --images or --videos")
    if arguments.texts is not None:
        texts = read_lines_or_json(arguments.texts)
        return Inputs("text", texts, fingerprint({"items": texts}))
    about = {name: getattr(arguments, name) for name in ("config", "split", "separator", "image_column")}
    rows = load(arguments.dataset, **about)
    if arguments.caption_column:
        column = columns.column(rows, arguments.caption_column, (), "caption")
        captions = columns.captions(rows, column, optional=True)
        several = sum(len(own) > 1 for own in captions)
        if several:
            logger.warning("%d of %d rows have several captions: the first of each is embedded", several, len(rows))
        return Inputs("text", [own[0] if own else None for own in captions], rows._fingerprint)
    column = columns.column(rows, arguments.image_column, columns.IMAGE_COLUMNS, "image")
    return Inputs("image", columns.images(rows, column), rows._fingerprint, column)


def files_in(arguments: argparse.Namespace, kind: str, sampling: Sampling | None = None) -> Files:
    given = getattr(arguments, f"{kind}s")
    if given.startswith(("http://", "https://")):
        remedy = "give a table of URLs by --dataset" if kind == "image" else "download them first"
        raise ValueError(f"--{kind}s takes a folder, not {given}: {remedy}")
    root = Path(given)
    names = [path.relative_to(root).as_posix() for path in files_below(root, kind)]
    odd = next((name for name in names if not is_unicode(name)), None)
    if odd is not None:
        raise ValueError(f"--{kind}s: the name of {odd!r} is not in UTF-8, and could not be kept: rename the file")
    return Files(kind, root, names, bool(arguments.check_contents), sampling)


def is_unicode(name: str) -> bool:
    """Whether a name has no bytes in it that Python could not read as text."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def run(arguments: argparse.Namespace) -> None:
    if arguments.index is not None:
        check_kind(arguments.index)
    inputs, folder = inputs_of(arguments), Path(arguments.output_dir)
    if isinstance(inputs, Inputs) and not len(inputs.items):
        raise ValueError("there is nothing to embed")
    session = open_session(arguments)
    if isinstance(inputs, Files):
        changes = session.update(folder, inputs, form=arguments.format, model=arguments.model)
        said = f" ({', '.join(f'{number} {what}' for what, number in asdict(changes).items())})"
    else:
        identity = session.identity(inputs.kind, data=inputs.identity, normalized=True, model=arguments.model)
        session.write(folder, identity, inputs, normalize=True, form=arguments.format)
        said = ""
    if session.first:
        stored = open_blocks(folder)
        for row, message in stored.errors.items():
            print(f"{stored.names[row] or f'row {row}'} cannot be read: {message}")
        count = len(set(stored.names)) if isinstance(inputs, Files) else stored.rows
        read = count - len(stored.errors)
        if not read:
            raise ValueError(f"none of the {count} {inputs.kind}s can be read: {folder} holds no embedding")
        vectors = "" if inputs.kind != "video" else f"{stored.rows - len(stored.errors)} vectors of "
        print(f"{vectors}{read} of {count} {inputs.kind}s are in {folder}" + said)
        if arguments.index is not None:
            written = write_index(folder, arguments.index)
            print(f"the index in {folder} is {'written' if written else 'as it was'}")
