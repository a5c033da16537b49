"""Does encoding keep the towers busy? encode_images and encode_texts against the bare towers, and bfloat16.

    python benchmarks/encoding.py                      # all lines, some seven minutes on two cores
    python benchmarks/encoding.py --only images bf16   # these lines anew, the others as they were

B/16-224 with random weights, 16 JPEGs of 640 x 480 and 16 texts. The bare towers get inputs prepared beforehand, so
the ratio also counts all reading, resizing and tokenizing. The bars: at least 0.97 of the bare tower's speed; bfloat16
on a CPU with AMX at least 2.5 times as fast as float32 at a cosine of at least 0.999. What was measured is kept in
benchmarks/results/encoding.json.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
from loss import machine
from PIL import Image
from pipeline import as_dict
from timing import alternate, with_interval

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    encode_images,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation.prompts import imagenet_classes


RESULTS = Path(__file__).parent / "results"
BATCH, TEXT_BATCH = 8, 16


def setting(rounds: int) -> dict:
    torch.manual_seed(0)
    texts = imagenet_classes()
    random = np.random.default_rng(0)
    files = []
    for _ in range(16):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    image_processor = SiglipExtImageProcessor()
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    tokenizer = train_tokenizer(texts, vocab_size=4000, max_length=64)
    chosen = texts[:TEXT_BATCH]
    return {
        "model": SiglipExtModel(SiglipExtConfig()).eval(),
        "image_processor": image_processor,
        "tokenizer": tokenizer,
        "files": files,
        "rounds": rounds,
        "pixels": image_processor(images=images, return_tensors="pt")["pixel_values"],
        "texts": chosen,
        "tokens": tokenizer(chosen, padding="max_length", truncation=True, return_tensors="pt")["input_ids"],
    }


@torch.no_grad()
def bare_images(s: dict) -> None:
    for pixels in s["pixels"].split(BATCH):
        s["model"].get_image_features(pixel_values=pixels)


@torch.no_grad()
def bare_texts(s: dict) -> None:
    s["model"].get_text_features(input_ids=s["tokens"])


def images(s: dict) -> dict:
    def run() -> None:
        encode_images(s["model"], s["image_processor"], s["files"], batch_size=BATCH, progress=False)

    return as_dict(alternate(lambda: bare_images(s), run, rounds=s["rounds"]))


def texts(s: dict) -> dict:
    def run() -> None:
        encode_texts(s["model"], s["tokenizer"], s["texts"], batch_size=TEXT_BATCH, progress=False)

    return as_dict(alternate(lambda: bare_texts(s), run, rounds=2 * s["rounds"]))


@torch.no_grad()
def bf16(s: dict) -> dict:
    half = SiglipExtModel(SiglipExtConfig()).eval()
    half.load_state_dict(s["model"].state_dict())
    half = half.to(torch.bfloat16)
    found = {}
    for name, inputs, call in (
        ("image tower", {"pixel_values": s["pixels"][:BATCH]}, "get_image_features"),
        ("text tower", {"input_ids": s["tokens"][:16]}, "get_text_features"),
    ):
        small = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}

        def full_pass(call=call, inputs=inputs):
            return getattr(s["model"], call)(**inputs).pooler_output

        def half_pass(call=call, small=small):
            return getattr(half, call)(**small).pooler_output

        cosines = torch.nn.functional.cosine_similarity(full_pass(), half_pass().float())
        ratio = alternate(full_pass, half_pass, rounds=s["rounds"])
        found[name] = as_dict(ratio) | {"least_cosine": cosines.min().item()}
    return found


LINES = {"images": images, "texts": texts, "bf16": bf16}
NAMES = {"images": "16 images, read and resized in threads", "texts": "16 texts"}


def table(found: dict) -> str:
    lines = [
        "# Encoding",
        "",
        f"Written by `benchmarks/encoding.py`. {found['machine']}.",
        "B/16-224, random weights; medians of alternating pairs with their 95 % intervals. The bare tower, on inputs",
        "prepared beforehand, has speed 1; the bar is 0.97.",
        "",
        "| what | bare tower, s | encoding, s | speed |",
        "|---|---:|---:|---|",
    ]
    for name in (name for name in NAMES if name in found):
        r = found[name]
        lines.append(
            f"| {NAMES[name]} | {r['seconds']:.3f} | {r['other_seconds']:.3f} | "
            f"{with_interval(r['ratio'], r['low'], r['high'])} |"
        )
    if "bf16" in found:
        lines += ["", "bfloat16 weights against float32; bar on a CPU with AMX: 2.5 times, cosine 0.999.", ""]
        lines += ["| what | float32, s | bfloat16, s | times as fast | least cosine |", "|---|---:|---:|---|---|"]
        for name, r in found["bf16"].items():
            lines.append(
                f"| {name} | {r['seconds']:.3f} | {r['other_seconds']:.3f} | "
                f"{with_interval(r['ratio'], r['low'], r['high'])} | {r['least_cosine']:.5f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--rounds", type=int, default=20, help="alternating pairs; twice as many for texts")
    args = parser.parse_args()
    kept = RESULTS / "encoding.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found["machine"] = machine()
    s = setting(args.rounds)
    for name in args.only:
        found[name] = LINES[name](s)
        print(name, found[name], flush=True)
        kept.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    (RESULTS / "encoding.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
