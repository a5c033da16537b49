"""Does encoding keep the towers busy? encode_images and encode_texts against the bare towers, and bfloat16.

    python benchmarks/encoding.py                      # all lines, some seven minutes on two cores
    python benchmarks/encoding.py --only images bf16   # these lines anew, the others as they were

Tokens: 16 images of 64 to 1,024 patches that keep their size, by three layers of a NaFlex B/16, ours and stock, in
batches of at most 4,096 patches against batches of four.

B/16-224 with random weights, 16 JPEGs of 640 x 480 and 16 texts. The bare towers get inputs prepared beforehand, so
the ratio also counts all reading, resizing and tokenizing. The bars: at least 0.97 of the bare tower's speed; bfloat16
on a CPU with AMX at least 2.5 times as fast as float32 at a cosine of at least 0.999. What was measured is kept in
benchmarks/results/encoding.json.
"""

import argparse
import io
from functools import partial

import numpy as np
import torch
from naflex import mixed_grids
from PIL import Image
from report import RESULTS, machine, publish, store, stored, table
from timing import alternate, with_interval
from transformers import Siglip2Model

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    encode_images,
    encode_texts,
    native_config,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation.prompts import imagenet_classes


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

    return alternate(lambda: bare_images(s), run, rounds=s["rounds"]).record()


def texts(s: dict) -> dict:
    def run() -> None:
        encode_texts(s["model"], s["tokenizer"], s["texts"], batch_size=TEXT_BATCH, progress=False)

    return alternate(lambda: bare_texts(s), run, rounds=2 * s["rounds"]).record()


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
        found[name] = ratio.record() | {"least_cosine": cosines.min().item()}
    return found


def tokens(s: dict) -> dict:
    config = SiglipExtConfig(vision_config={"naflex": True, "num_hidden_layers": 3})
    ours = SiglipExtModel(config).eval()
    stock = Siglip2Model(native_config(config)).eval()
    stock.load_state_dict(ours.state_dict())
    image_processor, random = SiglipExtNaflexImageProcessor(max_num_patches=1024), np.random.default_rng(0)
    mixed = [
        Image.fromarray(random.integers(0, 256, (16 * height, 16 * width, 3), dtype=np.uint8))
        for height, width in mixed_grids(16)
    ]
    found = {}
    for name, model in (("ours", ours), ("stock", stock)):

        def encode(model=model, **batches):
            return encode_images(model, image_processor, mixed, upscale=False, progress=False, **batches)

        np.testing.assert_allclose(encode(batch_tokens=4096), encode(batch_size=4), rtol=0, atol=1e-5)
        by_count, by_tokens = partial(encode, batch_size=4), partial(encode, batch_tokens=4096)
        found[name] = alternate(by_count, by_tokens, rounds=min(6, s["rounds"]), warmup=0).record()
    return found


LINES = {"images": images, "texts": texts, "bf16": bf16, "tokens": tokens}
NAMES = {"images": "16 images, read and resized in threads", "texts": "16 texts"}


def cells(name: str, r: dict) -> list[str]:
    return [name, f"{r['seconds']:.3f}", f"{r['other_seconds']:.3f}", with_interval(r["ratio"], r["low"], r["high"])]


def render(found: dict) -> list[str]:
    lines = [
        "# Encoding",
        "",
        f"Written by `benchmarks/encoding.py`. {found['machine']}.",
        "B/16-224, random weights; medians of alternating pairs with their 95 % intervals. The bare tower, on inputs",
        "prepared beforehand, has speed 1; the bar is 0.97.",
        "",
        *table(
            ("what", "bare tower, s:", "encoding, s:", "speed"),
            [cells(title, found[name]) for name, title in NAMES.items() if name in found],
        ),
    ]
    if "bf16" in found:
        lines += ["", "bfloat16 weights against float32; bar on a CPU with AMX: 2.5 times, cosine 0.999.", ""]
        lines += table(
            ("what", "float32, s:", "bfloat16, s:", "times as fast", "least cosine"),
            [[*cells(name, r), f"{r['least_cosine']:.5f}"] for name, r in found["bf16"].items()],
        )
    if "tokens" in found:
        lines += ["", "16 images of 64 to 1,024 patches by three layers of a NaFlex B/16, at most 4,096 a batch.", ""]
        lines += table(
            ("tower", "batches of four, s:", "by tokens, s:", "times as fast"),
            [cells(name, r) for name, r in found["tokens"].items()],
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--rounds", type=int, default=20, help="alternating pairs; twice as many for texts")
    args = parser.parse_args()
    kept = RESULTS / "encoding.json"
    found = {**stored(kept), "machine": machine()}
    s = setting(args.rounds)
    for name in args.only:
        found[name] = LINES[name](s)
        print(name, found[name], flush=True)
        store(kept, found)
    publish(kept.with_suffix(".md"), render(found))


if __name__ == "__main__":
    main()
