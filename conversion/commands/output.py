"""What the commands that write a folder have in common: their options, and what they print."""

import argparse
import sys

from ..containers.arrays import DTYPES
from ..convert import FORMATS, Options, Result


def folder_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the folder")
    group.add_argument(
        "--format", choices=FORMATS, help="native: for the stock classes; ext: for ours. Native where possible"
    )
    group.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the tensors (default: float32)")
    group.add_argument("--max-shard-size", default="5GB", help="of one file (default: 5GB)")
    group.add_argument(
        "--tokenizer", help="folder, tokenizer.json, SentencePiece .model or Hub repository; else the local Hub cache"
    )
    group.add_argument(
        "--text-rules",
        choices=("v1", "v2", "bert"),
        help="how texts are cut: SigLIP, SigLIP 2, BERT; the catalogue knows for its files",
    )
    group.add_argument(
        "--zero-bias",
        action="store_true",
        help="write a softmax checkpoint, which has no logit bias, in stock form with a bias of 0: logits and softmax "
        "probabilities stay the same, but sigmoid scores, which stock pipelines show, are not calibrated",
    )
    group.add_argument("--allow-nonfinite", action="store_true", help="convert NaN and infinite values as they are")


def folder_options(arguments: argparse.Namespace, resample: str = "bilinear") -> Options:
    return Options(
        form=arguments.format,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        allow_nonfinite=arguments.allow_nonfinite,
        tokenizer=arguments.tokenizer,
        rules=arguments.text_rules,
        zero_bias=arguments.zero_bias,
        resample=resample,
    )


def print_result(out: str, result: Result) -> None:
    report = result.report
    for what, names in report["left_out"].items():
        print(f"left out, {what}: {', '.join(names)}")
    for line in report.get("changes", ()):
        print(line)
    for name in report["nonfinite"]:
        print(f"not finite: {name}")
    for remark in result.remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(
        f"{out}: {report['class']}, {report['parameters']:,} parameters, {len(report['tensors'])} tensors verified, "
        f"largest difference {report['largest_difference']:.3g}"
    )
