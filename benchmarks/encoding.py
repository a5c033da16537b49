"""Does encoding keep the towers busy? encode_images and encode_texts against the bare towers, and bfloat16.

    python benchmarks/encoding.py                      # all lines, some four minutes
    python benchmarks/encoding.py --only images bf16   # these lines anew, the others as they were

B/16-224 with random weights. The bare towers get inputs prepared beforehand, so the ratio also counts all reading and
resizing. The bars: at least 0.97 of the bare tower's speed; bfloat16 on a CPU with AMX at least 2.5 times as fast as
float32 at a cosine of at least 0.999. What was measured is kept in benchmarks/results/encoding.json.
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
from timing import alternate

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
BATCH = 8


def setting(rounds: int, workers: list[int]) -> dict:
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
    chosen = texts[:32]
    return {
        "model": SiglipExtModel(SiglipExtConfig()).eval(),
        "image_processor": image_processor,
        "tokenizer": tokenizer,
        "files": files,
        "rounds": rounds,
        "workers": workers,
        "ready": [image.resize((224, 224), Image.Resampling.BICUBIC) for image in images],
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
    for tokens in s["tokens"].split(16):
        s["model"].get_text_features(input_ids=tokens)


def against_bare(s: dict, images: list, workers: int) -> dict:
    def run() -> None:
        options = {"batch_size": BATCH, "workers": workers, "progress": False}
        encode_images(s["model"], s["image_processor"], images, **options)

    return as_dict(alternate(lambda: bare_images(s), run, rounds=s["rounds"], warmup=0))


def images(s: dict) -> dict:
    found = {f"JPEG of 640 x 480, {workers} workers": against_bare(s, s["files"], workers) for workers in s["workers"]}
    return found | {"224 x 224 in memory, 2 workers": against_bare(s, s["ready"], 2)}


def texts(s: dict) -> dict:
    def run() -> None:
        encode_texts(s["model"], s["tokenizer"], s["texts"], batch_size=16, progress=False)

    return {"texts": as_dict(alternate(lambda: bare_texts(s), run, rounds=s["rounds"] + 1, warmup=1))}


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
        ratio = alternate(full_pass, half_pass, rounds=s["rounds"] + 2, warmup=1)
        found[name] = as_dict(ratio) | {"least_cosine": cosines.min().item()}
    return found


LINES = {"images": images, "texts": texts, "bf16": bf16}


def table(found: dict) -> str:
    lines = [
        "# Encoding",
        "",
        f"Written by `benchmarks/encoding.py`. {found['machine']}. B/16-224, random weights;",
        "medians of alternating pairs with their 95 % intervals. The bare tower, on inputs prepared beforehand, has",
        "speed 1; the bar is 0.97.",
        "",
        "| what | bare tower, s | encoding, s | speed |",
        "|---|---:|---:|---|",
    ]
    for name, r in {**found.get("images", {}), **found.get("texts", {})}.items():
        lines.append(
            f"| {name} | {r['seconds']:.3f} | {r['other_seconds']:.3f} | "
            f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}] |"
        )
    if "bf16" in found:
        lines += ["", "bfloat16 weights against float32; bar on a CPU with AMX: 2.5 times, cosine 0.999.", ""]
        lines += ["| what | float32, s | bfloat16, s | times as fast | least cosine |", "|---|---:|---:|---|---|"]
        for name, r in found["bf16"].items():
            lines.append(
                f"| {name} | {r['seconds']:.3f} | {r['other_seconds']:.3f} | "
                f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}] | {r['least_cosine']:.5f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--rounds", type=int, default=4, help="alternating pairs of the long lines")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    kept = RESULTS / "encoding.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found["machine"] = machine()
    s = setting(args.rounds, args.workers)
    for name in args.only:
        found[name] = LINES[name](s)
        print(name, found[name], flush=True)
        kept.write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "encoding.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
