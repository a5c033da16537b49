"""`siglip-ext-eval`: the evaluations of the SigLIP papers, and embeddings for search."""

import argparse
import sys
from collections.abc import Callable, Sequence

from .commands import arguments as commands
from .commands.card import card as add_to_card
from .known_benchmarks import PROBES, known_to


PROBE_HELP = {
    "few-shot": "Ridge regression on a few embeddings of each class, as big_vision's few-shot evaluation.",
    "linear-probe": "Logistic regression on the embeddings of a training split.",
    "knn": "Nearest neighbours among the embeddings of a training split.",
}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or isinstance(action.default, bool)
        return action.help if plain else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="siglip-ext-eval",
        description=__doc__,
        epilog="Under torchrun the processes share the inputs. A run that was stopped goes on where it was.",
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, usage: str, function: Callable, help: str | None = None) -> argparse.ArgumentParser:
        text = help or function.__doc__
        usage = f"%(prog)s {usage} [options]"
        found = sub.add_parser(
            name, help=text.splitlines()[0], description=text, usage=usage, formatter_class=Formatter
        )
        found.set_defaults(run=function)
        return found

    def evaluation(name: str, function: Callable, help: str | None = None) -> tuple:
        """A command that evaluates a model on rows; its groups of arguments for data and settings."""
        found = command(name, "--model MODEL --dataset DATASET", function, help)
        model(found)
        data = rows(found, known_to(name))
        own = found.add_argument_group("evaluation")
        results(found)
        return data, own

    data, own = evaluation("zero-shot", commands.zero_shot)
    data.add_argument("--label_column", metavar="NAME", help="column with classes: numbers, or names")
    data.add_argument(
        "--labels", metavar="FILE", help="JSON: the right classes of each row, any number (ImageNet-ReaL)"
    )
    data.add_argument(
        "--label_map", metavar="FILE", help="JSON: label to class or classes, by number or name (ObjectNet)"
    )
    own.add_argument(
        "--class_names", help="file with one name a line, JSON list, or imagenet; otherwise the data set's own"
    )
    own.add_argument(
        "--templates",
        help="clip_paper (unless the data set has its own), clip_best, none, or a file with {} in each line",
    )
    own.add_argument(
        "--canonicalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="lower-case prompts without punctuation, as big_vision does (default: yes)",
    )
    own.add_argument(
        "--central_crop",
        action=argparse.BooleanOptionalAction,
        help="resize images to size / 0.875 and crop (default: for the ImageNet benchmarks)",
    )

    data, own = evaluation("retrieval", commands.retrieval)
    data.add_argument("--caption_column", metavar="NAME", help="column with one caption or several")
    own.add_argument(
        "--sheet", type=int, default=200, metavar="N", help="images among which the picture retrieves; 0: no picture"
    )

    data, own = evaluation("multilingual-retrieval", commands.multilingual_retrieval)
    data.add_argument(
        "--languages", nargs="+", metavar="NAME", help="which ones; of a dataset, the columns with their captions"
    )

    for name in PROBES:
        data, own = evaluation(name, commands.probe, PROBE_HELP[name])
        data.add_argument("--label_column", metavar="NAME", help="column with classes: numbers, or names")
        data.add_argument("--train_split", metavar="NAME", help="part to train on (default: train)")
        if name == "few-shot":
            own.add_argument("--shots", type=int, nargs="+", default=[10], metavar="N", help="examples a class")
            own.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the examples to average over")
            own.add_argument("--l2", type=float, default=2.0**10, help="strength of the regularisation")
        elif name == "knn":
            own.add_argument("--k", type=int, default=20, help="neighbours that vote")
        else:
            own.add_argument("--seed", type=int, default=0, help="draws the rows that choose the regularisation")

    data, own = evaluation("threshold", commands.threshold)
    data.add_argument("--caption_column", metavar="NAME", help="column with captions; of several the first counts")
    data.add_argument(
        "--label_column", metavar="NAME", help="1 for a matched pair, 0 for another; without it texts are shuffled"
    )
    own.add_argument("--precision", type=float, help="the most recall at this precision, instead of the best F1")
    own.add_argument("--seed", type=int, default=0, help="draws the shuffled pairs")

    added = command(
        "embed", "--model MODEL (--images FOLDER | --texts FILE | --dataset DATASET) --output FOLDER", commands.embed
    )
    model(added)
    data = added.add_argument_group("data, one of the first three")
    data.add_argument("--images", metavar="FOLDER", help="all images in it and below")
    data.add_argument("--texts", metavar="FILE", help="one text a line, or a JSON list")
    data.add_argument("--dataset", help="name on the Hub, file or folder")
    columns(data)
    data.add_argument("--caption_column", metavar="NAME", help="embed the texts of this column, not the images")
    own = added.add_argument_group("output")
    own.add_argument("--output", required=True, metavar="FOLDER", help="where the embeddings go")
    own.add_argument("--format", choices=("parquet", "safetensors"), default="parquet", help="of the files")

    added = command("duplicates", "--embeddings FOLDER", commands.duplicates)
    added.add_argument("--embeddings", required=True, metavar="FOLDER", help="folder written by embed")
    added.add_argument("--threshold", type=float, default=0.95, help="cosine from which two are duplicates")
    added.add_argument("--output", default="duplicates.json", metavar="FILE", help="the groups")

    added = command("card", "results ... --model FOLDER", add_to_card)
    added.add_argument("results", nargs="+", help="result files, or folders with them")
    added.add_argument("--model", required=True, help="model folder with a card")
    added.add_argument("--trust_remote_code", action="store_true")

    added = command("report", "results ...", commands.report)
    added.add_argument("results", nargs="+", help="result files, or folders with them")
    added.add_argument("--output", metavar="FILE", help="Markdown file; without it the report is printed")
    return parser


def model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=True, help="name on the Hub or folder")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--trust_remote_code", action="store_true", help="run code that the model brings")
    group.add_argument("--device", help="where to compute (default: the accelerator if there is one, otherwise cpu)")
    group.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="inputs in one forward pass")
    group.add_argument(
        "--workers", type=int, metavar="N", help="threads that prepare images (default: one a core, at most 8)"
    )
    group.add_argument("--part_rows", type=int, default=4096, metavar="N", help="embeddings in one file on disk")


def columns(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", help="configuration of a dataset on the Hub")
    group.add_argument("--split", help="part of the dataset (default: test where there are several)")
    group.add_argument("--image_column", metavar="NAME", help="column with images")


def rows(parser: argparse.ArgumentParser, benchmarks: Sequence[str]) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", help="name on the Hub, file or folder; with --benchmark, where its copy is")
    parser.set_defaults(benchmark=None)
    if benchmarks:
        group.add_argument("--benchmark", metavar="NAME", help=f"known ones: {', '.join(benchmarks)}")
    columns(group)
    group.add_argument("--limit", type=int, metavar="N", help="only the first rows")
    return group


def results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--output_dir", default="results", metavar="FOLDER", help="for the result and its picture")
    group.add_argument(
        "--cache_dir", default="results/embeddings", metavar="FOLDER", help="embeddings, shared between commands"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"siglip-ext-eval: {error}")


if __name__ == "__main__":
    main()
