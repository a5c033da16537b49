"""`siglip-ext-train precompute`: the embeddings of a locked image tower, once for all epochs and runs."""

import argparse
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoImageProcessor

from modeling_siglip_ext import command_line
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.dual_models import checked_device, default_device
from modeling_siglip_ext.encoding import EncodedBatch, stream_images
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.inputs import undecoded

from ..components.embedding_tower import ImageEncoder
from ..data.fingerprint import fingerprint
from ..data.folder import check_columns
from ..data.samples import SkipCounter
from .fields import DataArguments
from .recipe import DEFAULTS
from .rows import every_row
from .unused import find_unused


# Options as for training, so that both read the same rows.
DATA = ("dataset", "scenes", "dataset_config", "train_split", "eval_split", "image_column", "caption_column")
DTYPES = ("float32", "bfloat16", "float16")


def precompute(
    model: str,
    rows: Dataset,
    folder: str | Path,
    *,
    image_column: str = "image",
    pooling: str | None = None,
    batch_size: int = 64,
    budget: ImageBudget | None = None,
    workers: int | None = None,
    part_rows: int = 10_000,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    max_bad_fraction: float = 0.01,
) -> None:
    """Write the embedding of every image in parts; what an earlier call has finished is left as it is.

    Under torchrun every process embeds each n-th part.

    Args:
        model: see `ImageEncoder`.
        rows: map-style dataset; row i of the embeddings is its row i.
        folder: gets the parts and the fingerprint of what they depend on; see `embedding_store.compute`.
        image_column: column of images.
        pooling: see `ImageEncoder`.
        batch_size: images in one forward.
        budget: of a NaFlex tower: patches of an image, and of a forward; see `encode_images`.
        workers: threads that read and prepare images; see `encode_images`.
        part_rows: rows in one file.
        device, dtype: of the forward; embeddings are saved in float32.
        max_bad_fraction: largest share of images that may be unreadable; training leaves them out.

    Raises:
        ValueError: the folder holds embeddings of something else, or `budget` is for another tower.
        TooManyBadSamples: with the list.
    """
    check_columns(rows.column_names, "image_column", [image_column])
    image_processor = AutoImageProcessor.from_pretrained(model)
    budget = budget or ImageBudget()
    budget.check(image_processor)
    settings = fingerprint(model, pooling, image_processor, rows, image_column, budget) | {"dtype": str(dtype)}
    encoder = ImageEncoder(model, pooling).to(device, dtype)
    images = undecoded(rows.select_columns([image_column]), image_column)
    skips = SkipCounter(max_bad_fraction, grace=min(len(rows), 1000))

    def encode(first: int, last: int) -> Iterator[EncodedBatch]:
        items = (row[image_column] for row in images.select(range(first, last)))
        sizes: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "budget": budget}
        for batch in stream_images(encoder, image_processor, items, normalize=False, **sizes):
            skipped = [(f"example {first + place}", reason) for place, reason in batch.errors.items()]
            skips.add(len(batch.embeds), skipped)
            first += len(batch.embeds)
            yield batch

    store.compute(
        Path(folder),
        settings,
        len(rows),
        encode,
        encoder,
        part_rows=part_rows,
        what="images",
        remedy="use what they were made of, give another output_dir, or remove this one",
    )


def register(commands: command_line.Subparsers) -> None:
    """Add the command with its options."""
    parser = command_line.add_command(
        commands,
        "precompute",
        run,
        summary="write the embeddings of a locked image tower, once for all epochs and runs",
        description="Write image embeddings to train from with `--image_embeddings`. Run it again to continue where "
        "it stopped; under torchrun each process embeds a share of the parts.",
    )
    add = parser.add_argument
    add("--vision_name_or_path", required=True, help="folder or Hub name of a SigLIP model or another image model")
    add("--vision_pooling", help="how a tower from elsewhere gives its vector: first, pooler, mean, max, last")
    add("--output_dir", default="image-embeddings", help="folder of the embeddings")
    for field in fields(DataArguments):
        if field.name in DATA:
            several = field.default is MISSING
            kind: dict[str, Any] = {"nargs": "+"} if several else {"type": type(field.default or "")}
            default = argparse.SUPPRESS if several else field.default
            add(f"--{field.name}", default=default, help=field.metadata["help"].replace("%", "%%"), **kind)
    add("--batch_size", type=int, default=64, metavar="N", help="images in one forward pass")
    add("--max_num_patches", type=int, metavar="N", help="NaFlex: patches of an image (default: its processor's)")
    add("--upscale", action=command_line.Switch, help="NaFlex: enlarge small images to that (default: yes)")
    add("--batch_tokens", type=int, metavar="N", help="NaFlex: patches in one forward pass, for --batch_size")
    add("--workers", type=int, metavar="N", help="threads that prepare images (default: one a core, at most 8)")
    add("--part_rows", type=int, default=10_000, metavar="N", help="embeddings in one file on disk")
    add("--device", help="where to compute (default: the accelerator if there is one, otherwise cpu)")
    add("--dtype", default="float32", choices=DTYPES, help="precision of the tower; embeddings are float32")
    add("--max_bad_fraction", type=float, default=0.01, help="share of images that may be unreadable, and left out")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        FileNotFoundError, ValueError: naming what is wrong and the remedy.
    """
    for name, least in (("batch_size", 1), ("part_rows", 1), ("workers", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    options = {name: value for name, value in vars(arguments).items() if name in DATA}
    data, given = DataArguments(**options), {name for name, value in options.items() if value != DEFAULTS[name]}
    for name, rule in find_unused(argparse.Namespace(**{**DEFAULTS, **options}), given, DEFAULTS).items():
        raise ValueError(f"{name} has no effect {rule.why}: leave it out")
    same = ("image_column", "batch_size", "workers", "part_rows", "max_bad_fraction")
    precompute(
        arguments.vision_name_or_path,
        every_row(data),
        arguments.output_dir,
        pooling=arguments.vision_pooling,
        budget=ImageBudget(arguments.max_num_patches, arguments.upscale is not False, arguments.batch_tokens),
        device=checked_device(arguments.device or default_device()),
        dtype=getattr(torch, arguments.dtype),
        **{name: getattr(arguments, name) for name in same},
    )
    if store.processes()[0] == 0:
        print(f"The embeddings are in {arguments.output_dir}")
