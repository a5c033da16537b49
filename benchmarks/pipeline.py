"""What labels cost in zero-shot classification: our pipeline against the bare towers and against the stock pipeline.

    python benchmarks/pipeline.py                          # all lines, twenty minutes on two cores
    python benchmarks/pipeline.py --only warm two          # these lines anew, the others as they were
    python benchmarks/pipeline.py --only cold stock --labels 250

B/16-224 with random weights, 1,000 labels, 64 images. The bars: warm (labels seen before) at most 1.10 x image tower
and preprocessing; cold at most 1.10 x (that and one pass of the text tower over the labels); cold at least 30 times as
fast as the stock pipeline at batch size 1, which is measured on 2 images and multiplied; with 2 labels and an empty
cache at most 1.02 x stock. What was measured is kept in benchmarks/results/pipeline.json.
"""

import argparse

import numpy as np
import torch
from PIL import Image
from report import RESULTS, machine, publish, store, stored, table
from timing import alternate, seconds, with_interval
from torch.nn import functional as F
from transformers import ZeroShotImageClassificationPipeline

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtZeroShotImageClassificationPipeline,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation.prompts import imagenet_classes
from modeling_siglip_ext.pipeline_siglip_ext import weights_version


TASK = "zero-shot-image-classification"
IMAGES, BATCH, STOCK_IMAGES = 64, 8, 2
TEMPLATE = "This is a photo of {}."


def setting(count: int, rounds: int) -> dict:
    torch.manual_seed(0)
    labels = list(dict.fromkeys(imagenet_classes()))
    labels += [f"{label} again" for label in labels[: 1000 - len(labels)]]
    labels = labels[:count]
    tokenizer = train_tokenizer(labels, vocab_size=4000, max_length=64)
    model = SiglipExtModel(SiglipExtConfig()).eval()
    parts = {"model": model, "task": TASK, "tokenizer": tokenizer, "image_processor": SiglipExtImageProcessor()}
    random = np.random.default_rng(0)
    # smooth, as photographs are: noise would make resizing neither slower nor faster, but nothing else plausible
    small = [random.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(IMAGES)]
    return {
        "labels": labels,
        "rounds": rounds,
        "images": [Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC) for pixels in small],
        "model": model,
        "tokenizer": tokenizer,
        "image_processor": parts["image_processor"],
        "ours": SiglipExtZeroShotImageClassificationPipeline(**parts, device="cpu", batch_size=BATCH),
        "stock": ZeroShotImageClassificationPipeline(**parts, device="cpu"),
    }


@torch.no_grad()
def image_pass(s: dict) -> None:
    for start in range(0, IMAGES, BATCH):
        pixels = s["image_processor"](images=s["images"][start : start + BATCH], return_tensors="pt")
        s["model"].get_image_features(**pixels)


@torch.no_grad()
def text_pass(s: dict, batch: int = 64) -> None:
    texts = [TEMPLATE.format(label) for label in s["labels"]]
    for start in range(0, len(texts), batch):
        tokens = s["tokenizer"](
            texts[start : start + batch], padding="max_length", truncation=True, return_tensors="pt"
        )
        F.normalize(s["model"].get_text_features(input_ids=tokens["input_ids"]).pooler_output, dim=-1)


def ours_cold(s: dict, images, labels) -> list:
    s["ours"]._classes.tensors.clear()
    return s["ours"](images, candidate_labels=labels)


def warm(s: dict) -> dict:
    def run() -> None:
        s["ours"](s["images"], candidate_labels=s["labels"])

    # what the cache holds after a first call, without the time that this takes
    classes = F.normalize(torch.randn(len(s["labels"]), s["model"].config.text_config.projection_size), dim=-1)
    s["ours"]._classes.put((tuple(s["labels"]), (TEMPLATE,), weights_version(s["model"])), classes)
    found = alternate(run, lambda: image_pass(s), rounds=2 * s["rounds"], warmup=0).record()
    assert len(s["ours"]._classes.tensors) == 1, "the labels were embedded again"
    return found


def cold(s: dict) -> dict:
    def floor() -> None:
        image_pass(s)
        text_pass(s)

    return alternate(lambda: ours_cold(s, s["images"], s["labels"]), floor, rounds=s["rounds"], warmup=0).record()


def stock(s: dict) -> dict:
    """The stock pipeline on two images, multiplied, and the greatest difference of scores on one of them."""
    s["ours"]._classes.tensors.clear()
    images, found = s["images"][:STOCK_IMAGES], []
    measured = seconds(lambda: found.extend(s["stock"](images, candidate_labels=s["labels"])))
    ours = {row["label"]: row["score"] for row in s["ours"](images[0], candidate_labels=s["labels"])}
    difference = max(abs(ours[row["label"]] - row["score"]) for row in found[0])
    return {"measured_seconds": measured, "seconds": measured * IMAGES / STOCK_IMAGES, "difference": difference}


def two(s: dict) -> dict:
    image, labels = s["images"][0], s["labels"][:2]
    ratio = alternate(
        lambda: ours_cold(s, image, labels), lambda: s["stock"](image, candidate_labels=labels), rounds=60
    )
    return ratio.record() | {"labels": len(labels)}


LINES = {"warm": warm, "cold": cold, "stock": stock, "two": two}


LIKE = {  # line: what it is, against what, the bar
    "warm": ("{} labels seen before", "image tower and preprocessing", "<= 1.10"),
    "cold": ("{} new labels", "the same and one pass of the text tower", "<= 1.10"),
    "two": ("one image, 2 new labels", "stock pipeline", "<= 1.02"),
}


def rows(found: dict) -> list[list[str]]:
    lines = []
    for key, (what, against, bar) in LIKE.items():
        if key in found:
            r = found[key]
            ratio = with_interval(r["ratio"], r["low"], r["high"])
            other = f"{against}: {r['other_seconds']:.2f}"
            lines.append([what.format(r["labels"]), f"{r['seconds']:.2f}", other, ratio, bar])
    if against_stock(found):
        ours, s = found["cold"], found["stock"]
        other = (
            f"stock, batch size 1: {s['seconds']:.0f} "
            f"(extrapolated from {s['measured_seconds']:.1f} for {STOCK_IMAGES} images)"
        )
        factor = f"{s['seconds'] / ours['seconds']:.1f} times as fast"
        lines.append([f"{s['labels']} new labels", f"{ours['seconds']:.2f}", other, factor, ">= 30"])
    return lines


def against_stock(found: dict) -> bool:
    return {"stock", "cold"} <= set(found) and found["stock"]["labels"] == found["cold"]["labels"]


def render(found: dict) -> list[str]:
    lines = [
        "# Zero-shot pipeline",
        "",
        f"Written by `benchmarks/pipeline.py`. {found['machine']}.",
        f"B/16-224, random weights, float32, {IMAGES} images of 640 x 480 in batches of {BATCH}; medians of pairs in",
        "turn, 95 % intervals.",
        "",
        *table(("what", "ours, s:", "against, s", "ratio", "bar"), rows(found)),
    ]
    if against_stock(found):
        lines += ["", f"Greatest difference of a score from the stock pipeline's: {found['stock']['difference']:.1e}."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="alternating pairs of cold; warm takes twice as many")
    args = parser.parse_args()
    kept = RESULTS / "pipeline.json"
    found = {**stored(kept), "machine": machine()}
    s = setting(args.labels, args.rounds)
    for name in args.only:
        found[name] = {"labels": args.labels} | LINES[name](s)
        print(name, found[name], flush=True)
        store(kept, found)
    publish(kept.with_suffix(".md"), render(found))


if __name__ == "__main__":
    main()
