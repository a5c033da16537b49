"""Options that commands share, and what becomes of them: a frozen value at the door, no Namespace behind it."""

import argparse
import re
from argparse import _ArgumentGroup as Group
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from modeling_siglip_ext.captioning import CaptionDecoder, load_decoder
from modeling_siglip_ext.command_line import Parser, Run, Subparsers, Switch, add_command, refuse_unused
from modeling_siglip_ext.embedding_store import weights_fingerprint
from modeling_siglip_ext.files import check_output_dir, read_json
from siglip_ext_runtime.backends import BACKENDS

from ..data import EvaluationData, select
from ..data.sources import short_name
from ..known_benchmarks import known_to
from ..results import read_results
from ..session import Session, Settings


# commands whose figures are drawn by the number of patches
BY_LENGTH = ("zero-shot", "retrieval")


def evaluation_command(commands: Subparsers, name: str, run: Run, summary: str) -> tuple[Group, Group]:
    """A command that evaluates a model on rows; its groups of options for data and settings."""
    parser = add_command(commands, name, run, summary=summary)
    parser.usage = "%(prog)s --model MODEL --dataset DATASET [options]"
    add_model(parser, lengths=name in BY_LENGTH)
    data = add_rows(parser, known_to(name))
    own = parser.add_argument_group("evaluation")
    results = parser.add_argument_group("results")
    results.add_argument("--output_dir", default="results", metavar="FOLDER", help="for the result and its picture")
    results.add_argument(
        "--cache_dir", default="results/embeddings", metavar="FOLDER", help="embeddings, shared between commands"
    )
    return data, own


def add_model(parser: Parser, *, embeddings: bool = True, lengths: bool = False) -> Group:
    """The options of a model; with those for many embeddings, unless a command makes none.

    Args:
        lengths: whether it takes several numbers of patches.

    Returns:
        Their group.
    """
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, help="name on the Hub or folder")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--trust_remote_code", action="store_true", help="run code that the model brings")
    group.add_argument("--device", help="where to compute (default: the accelerator if there is one, otherwise cpu)")
    group.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    group.add_argument(
        "--backend", choices=tuple(BACKENDS), help="the model is an exported one, and this engine runs it"
    )
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="inputs in one forward pass")
    if not embeddings:
        return group
    group.add_argument(
        "--workers", type=int, metavar="N", help="threads that prepare images (default: one a core, at most 8)"
    )
    group.add_argument("--part_rows", type=int, default=4096, metavar="N", help="embeddings in one file on disk")
    add_patches(group, lengths=lengths)
    text = "NaFlex: patches in one forward pass, for --batch_size"
    group.add_argument("--batch_tokens", type=int, metavar="N", help=text)
    return group


def add_patches(group: Group, *, lengths: bool = False) -> None:
    """What a NaFlex model sees of an image; with `lengths`, once for each of several."""
    which: dict[str, Any] = {"dest": "lengths", "nargs": "+"} if lengths else {}
    several = "; several give the figures by length" if lengths else ""
    text = f"NaFlex: patches of an image (default: as its processor says){several}"
    group.add_argument("--max_num_patches", type=int, metavar="N", help=text, **which)
    group.add_argument(
        "--upscale", action=Switch, help="NaFlex: enlarge small images to so many patches (default: yes, as trained)"
    )


def passes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `caption` and `locate_all` are told of forward passes."""
    names = ("batch_size", "max_num_patches", "upscale")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def add_decoder(parser: Parser) -> None:
    """The options of a model, and of a decoder beside it."""
    add_patches(add_model(parser, embeddings=False))
    parser.add_argument(
        "--decoder",
        required=True,
        metavar="FOLDER",
        help="decoder, in the output folder of siglip-ext-train, or what save_decoder wrote",
    )


def add_rows(parser: Parser, benchmarks: Sequence[str]) -> Group:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", help="name on the Hub, file, URL or folder; with --benchmark, where its copy is")
    parser.set_defaults(benchmark=None)
    if benchmarks:
        group.add_argument("--benchmark", metavar="NAME", help=f"known ones: {', '.join(benchmarks)}")
    add_columns(group)
    group.add_argument("--limit", type=int, metavar="N", help="only the first rows")
    return group


def add_columns(group: Group) -> None:
    group.add_argument("--config", help="configuration of a dataset on the Hub")
    group.add_argument("--split", help="part of the dataset (default: test where there are several)")
    group.add_argument("--separator", metavar="CHARACTER", help="of a CSV file (default: as in its first line)")
    group.add_argument("--image_column", metavar="NAME", help="column with images")


def open_session(arguments: argparse.Namespace) -> Session:
    """The model, loaded and run as the arguments want it.

    Raises:
        OSError: what the command finds cannot be written where it should go.
        FileExistsError: another model's result is there.
        ValueError: a revision of a folder, which has none.
    """
    for name in ("output_dir", "cache_dir"):
        if hasattr(arguments, name):
            check_output_dir(getattr(arguments, name), f"--{name}")
    if Path(arguments.model).is_dir():
        refuse_unused(arguments, ["revision"], "with a folder")
    given = vars(arguments)
    named = {one.name: given[one.name] for one in fields(Settings) if one.name in given}
    if named.get("upscale") is None:
        named.pop("upscale", None)
    session = Session.open(Settings(**named))
    if hasattr(arguments, "cache_dir"):  # a command with a result
        check_same_model(result_path(arguments), session)
    return session


def open_decoder(arguments: argparse.Namespace, file: str) -> tuple[Session, CaptionDecoder, Path, dict[str, str]]:
    """A model and a decoder beside it; the path of a file in the output folder, and the weights that it is to name.

    Raises:
        OSError, ValueError: as `load_decoder` and `open_session`.
        FileExistsError: the file is there and of other weights, and would be lost.
    """
    decoder, session = load_decoder(arguments.decoder), open_session(arguments)
    path = Path(arguments.output_dir) / file
    weights = {"model": session.weights, "decoder": weights_fingerprint(decoder)}
    if path.is_file() and read_json(path, "choose another --output_dir").get("weights") != weights:
        raise FileExistsError(f"{path} is of another model or decoder: choose another --output_dir")
    return session, decoder.to(session.model.device, session.model.dtype), path, weights


def check_same_model(path: Path, session: Session) -> None:
    """
    Raises:
        FileExistsError: the result of a model with other weights is there, and would be lost.
    """
    if not path.is_file():
        return
    (result,) = read_results([path]).values()
    model = result.model
    if model is not None and model.weights not in (None, session.weights):
        dtype = "" if model.dtype is None else f" in {model.dtype}"
        raise FileExistsError(f"{path} is of other weights, {model.name}{dtype}: choose another --output_dir")


def select_data(arguments: argparse.Namespace, **options: Any) -> EvaluationData:
    """The rows that the arguments name, for their command; `options` are `select`'s, and go before the arguments.

    Raises:
        ValueError: a configuration of what has none.
    """
    if arguments.dataset is not None and Path(arguments.dataset).exists():
        refuse_unused(arguments, ["config"], "with a file or a folder")
    shared = ("benchmark", "config", "split", "separator", "limit", "image_column")
    shared += ("caption_column", "label_column")
    given = {name: getattr(arguments, name) for name in shared if hasattr(arguments, name)}
    return select(arguments.dataset, **{"task": arguments.command, **given, **options})


def result_path(arguments: argparse.Namespace, suffix: str = ".json") -> Path:
    """The result file, or its picture."""
    about = arguments.benchmark or short_name(arguments.dataset)
    return Path(arguments.output_dir) / (re.sub(r"[^\w.-]+", "-", f"{arguments.command}-{about}") + suffix)
