"""`siglip-ext-eval`: the evaluations of the SigLIP papers, and embeddings for search."""

import argparse
import sys
from collections.abc import Sequence

from . import commands
from .known import BENCHMARKS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="siglip-ext-eval",
        description=__doc__,
        epilog="Under torchrun the processes share the inputs. A run that was stopped goes on where it was.",
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, function, *groups) -> argparse.ArgumentParser:
        found = sub.add_parser(name, help=function.__doc__.splitlines()[0], description=function.__doc__)
        found.set_defaults(run=function)
        for group in groups:
            group(found)
        return found

    added = command("zero-shot", commands.zero_shot, model, rows, results)
    added.add_argument("--label_column")
    added.add_argument("--class_names", help="file with one name a line, JSON list, or imagenet")
    added.add_argument("--templates", help="clip_paper (default), clip_best, none, or a file with {} in each line")
    added.add_argument("--labels", help="JSON with the right classes of each row, any number of them (ImageNet-ReaL)")
    added.add_argument("--label_map", help="JSON: label to class or classes, by index or name (ObjectNet)")
    added.add_argument(
        "--canonicalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="lower-case prompts without punctuation, as big_vision does (default: yes)",
    )
    added.add_argument(
        "--central_crop",
        action=argparse.BooleanOptionalAction,
        help="resize images to size / 0.875 and crop (default: for the ImageNet benchmarks)",
    )

    added = command("retrieval", commands.retrieval, model, rows, results)
    added.add_argument("--caption_column")
    added.add_argument("--sheet", type=int, default=200, help="images among which the picture retrieves; 0: none")

    added = command("multilingual-retrieval", commands.multilingual_retrieval, model, rows, results)
    added.add_argument("--languages", nargs="+", help="which ones; of a dataset, the columns with their captions")

    for name in ("few-shot", "linear-probe", "knn"):
        added = command(name, commands.probe, model, rows, results)
        added.add_argument("--label_column")
        added.add_argument("--train_split", default="train")
        if name == "few-shot":
            added.add_argument("--shots", type=int, nargs="+", default=[10])
            added.add_argument("--seeds", type=int, default=3)
            added.add_argument("--l2", type=float, default=2.0**10)
        elif name == "knn":
            added.add_argument("--k", type=int, default=20)
        else:
            added.add_argument("--seed", type=int, default=0)

    added = command("threshold", commands.threshold, model, rows, results)
    added.add_argument("--caption_column")
    added.add_argument("--label_column", help="1 for a matched pair, 0 for another; without it texts are shuffled")
    added.add_argument("--precision", type=float, help="the most recall at this precision, instead of the best F1")
    added.add_argument("--seed", type=int, default=0)

    added = command("embed", commands.embed, model)
    added.add_argument("--images", help="folder with images")
    added.add_argument("--texts", help="file with one text a line, or a JSON list")
    added.add_argument("--dataset", help="dataset, as in the other commands")
    added.add_argument("--config")
    added.add_argument("--split")
    added.add_argument("--image_column")
    added.add_argument("--caption_column", help="embed the texts of this column")
    added.add_argument("--output", required=True, help="folder to write")
    added.add_argument("--format", choices=("parquet", "safetensors"), default="parquet")

    added = command("duplicates", commands.duplicates)
    added.add_argument("--embeddings", required=True, help="folder written by embed")
    added.add_argument("--threshold", type=float, default=0.95, help="cosine from which two are duplicates")
    added.add_argument("--output", default="duplicates.json")

    added = command("report", commands.report)
    added.add_argument("results", nargs="+", help="result files, or folders with them")
    added.add_argument("--output", help="Markdown file; by default it is printed")
    return parser


def model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="name on the Hub or folder")
    parser.add_argument("--revision")
    parser.add_argument("--trust_remote_code", action="store_true")
    parser.add_argument("--device", help="cuda where there is one, otherwise cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, help="threads that prepare images")
    parser.add_argument("--part_rows", type=int, default=4096, help="embeddings in one file")


def rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--benchmark", help=f"known ones: {', '.join(BENCHMARKS)}")
    parser.add_argument("--dataset", help="name on the Hub, file or folder; with --benchmark, where its copy is")
    parser.add_argument("--config")
    parser.add_argument("--split")
    parser.add_argument("--image_column")
    parser.add_argument("--limit", type=int, help="only the first rows")


def results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", default="results")
    parser.add_argument("--cache_dir", default="results/embeddings", help="embeddings, shared between commands")


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, TypeError, FileNotFoundError) as error:
        sys.exit(f"siglip-ext-eval: {error}")


if __name__ == "__main__":
    main()
