"""How fast training data is read: samples per second of the loaders against a bare loop that decodes and resizes.

    python benchmarks/data.py        # about a minute; prints the table and writes benchmarks/results/data.md

The images are 600 JPEGs of 400 x 300 pixels, resized to 224. The bare loop does what must be done: open, decode,
resize. The loaders also draw a caption, tokenise, stack and report, in the main process or in two workers. Two workers
are compared with two bare loops at once.

NaFlex is compared with the fixed size, both bilinear: at most 256 patches of 16 pixels against 256 x 256 pixels. Bar:
at most 1.10 times the fixed-size time per image, of equal pixels.
"""

import argparse
import io
import itertools
import math
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from report import RESULTS, publish, table, versions
from timing import Ratio, alternate
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor

from modeling_siglip_ext import (
    SiglipExtImageProcessor,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.loaders import stream_loader
from modeling_siglip_ext.training.data.samples import ReportingCollator
from modeling_siglip_ext.training.data.streaming import ImageTextStream
from modeling_siglip_ext.training.data.tar_shards import TarShards


RESAMPLE = Image.Resampling(SiglipExtImageProcessor.resample)  # bicubic takes twice as long as bilinear
IMAGES, BATCH, SIZE, PATCHES, TIMED = 600, 32, 224, 256, 10  # TIMED: batches in one measurement


def photographs() -> list[bytes]:
    """Smooth random pictures, which compress about as photographs do."""
    generator, encoded = np.random.default_rng(0), []
    for _ in range(IMAGES):
        coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (picture + generator.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(noisy).save(content, "JPEG", quality=85)
        encoded.append(content.getvalue())
    return encoded


def write_shards(encoded: list[bytes], folder: Path) -> str:
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(shard, len(encoded), 4):
                for name, data in (
                    (f"{number}.jpg", encoded[number]),
                    (f"{number}.txt", f"picture {number}".encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return str(folder / "{0..3}.tar")


def decode(encoded: list[bytes], count: int) -> None:
    """The bare loop."""
    for content in itertools.islice(itertools.cycle(encoded), count):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        torch.from_numpy(np.array(image.resize((SIZE, SIZE), RESAMPLE))).permute(2, 0, 1)


def decode_in_turns(encoded: list[bytes], orders, finished) -> None:
    torch.set_num_threads(1)
    while count := orders.get():
        decode(encoded, count)
        finished.put(None)


def endless(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="alternating pairs")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    encoded = photographs()
    captions = [f"picture {number}" for number in range(IMAGES)]
    tokenizer = train_tokenizer(captions, vocab_size=300, max_length=64)
    square = SiglipExtImageProcessor(size={"height": SIZE, "width": SIZE})
    rows = Dataset.from_dict({"image": [{"bytes": b, "path": None} for b in encoded], "caption": captions})
    rows = rows.cast_column("image", ImageFeature())
    lines: dict[str, Ratio] = {}
    naflex: dict[str, Ratio] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(encoded, Path(folder))

        def loader(kind: str, workers: int, images: BaseImageProcessor = square) -> DataLoader:
            collator = ReportingCollator(ImageTextCollator(SiglipExtProcessor(images, tokenizer), uint8=True))
            if kind == "tar shards":
                stream = ImageTextStream(TarShards(shards), image_processor=images)
                return stream_loader(stream, BATCH, collator, 0, 1, num_workers=workers)
            dataset = ImageTextDataset(rows, image_processor=images, cache_gib=0)
            return DataLoader(
                dataset,
                BATCH,
                drop_last=True,
                collate_fn=collator,
                num_workers=workers,
                persistent_workers=workers > 0,
            )

        context = get_context("fork")
        orders, finished = context.Queue(), context.Queue()
        helpers = [context.Process(target=decode_in_turns, args=(encoded, orders, finished)) for _ in range(2)]
        for helper in helpers:
            helper.start()

        def two_loops() -> None:
            for _ in helpers:
                orders.put(TIMED * BATCH // 2)
            for _ in helpers:
                finished.get()

        floors: dict[int, Callable[[], None]] = {0: lambda: decode(encoded, TIMED * BATCH), 2: two_loops}
        for kind, workers in itertools.product(("Dataset", "tar shards"), floors):
            batches = endless(loader(kind, workers))
            where = "main process, bare loop" if workers == 0 else "2 workers, 2 bare loops"
            lines[f"{kind}, {where}"] = alternate(
                lambda batches=batches: [next(batches) for _ in range(TIMED)], floors[workers], rounds=rounds
            )
            del batches
        both = naflex_and_fixed()
        for kind, workers in itertools.product(("Dataset", "tar shards"), (0, 2)):
            ours, fixed = (endless(loader(kind, workers, images)) for images in both)
            naflex[f"{kind}, {f'{workers} workers' if workers else 'main process'}"] = alternate(
                lambda ours=ours: [next(ours) for _ in range(TIMED)],
                lambda fixed=fixed: [next(fixed) for _ in range(TIMED)],
                rounds=rounds,
            )
            del ours, fixed
        for _ in helpers:
            orders.put(0)
        for helper in helpers:
            helper.join()

    publish(RESULTS / "data.md", render(lines, naflex))


def naflex_and_fixed() -> tuple[BaseImageProcessor, BaseImageProcessor]:
    """Image processors that give an image as many pixels, but for its shape."""
    side = math.isqrt(PATCHES) * 16
    fixed = SiglipExtImageProcessor(size={"height": side, "width": side}, resample=Image.Resampling.BILINEAR)
    return SiglipExtNaflexImageProcessor(max_num_patches=PATCHES), fixed


def render(lines: dict[str, Ratio], naflex: dict[str, Ratio]) -> list[str]:
    count = TIMED * BATCH
    return [
        "# Reading training data",
        "",
        f"{versions(transformers=False)}; JPEGs of 400 x 300, resized to "
        f"{SIZE}. The last column is the loader's time as a multiple of the bare loop's, over alternating pairs.",
        "",
        *table(
            ("what", "loader, samples/s", "decode and resize only, samples/s", "time"),
            [[name, f"{count / r.seconds_a:.0f}", f"{count / r.seconds_b:.0f}", str(r)] for name, r in lines.items()],
        ),
        "",
        f"NaFlex, at most {PATCHES} patches, against the same loader at the fixed size of as many pixels, both "
        "bilinear; the last column is NaFlex' time as a multiple of the other's.",
        "",
        *table(
            ("what", "NaFlex, samples/s", "fixed size, samples/s", "time"),
            [[name, f"{count / r.seconds_a:.0f}", f"{count / r.seconds_b:.0f}", str(r)] for name, r in naflex.items()],
        ),
    ]


if __name__ == "__main__":
    main()
