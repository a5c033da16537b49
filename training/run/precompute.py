"""`siglip-ext-train precompute`: embeddings of a locked image tower, or of a reference model, once for all runs."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin

from modeling_siglip_ext import SiglipExtModel, command_line
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.dual_models import checked_device, default_device
from modeling_siglip_ext.encoding import EncodedBatch, stream_images, stream_texts
from modeling_siglip_ext.files import check_output_dir
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.inputs import undecoded

from ..components.embedding_tower import ImageEncoder
from ..data.fingerprint import fingerprint, values_digest, weights_digest
from ..data.folder import check_columns
from ..data.reference_embeddings import BIAS, SCALE, captions_of, of_the_data
from ..data.samples import SkipCounter
from ..objectives.super_batch import check_reference
from .fields import DataArguments
from .objective_fields import REFERENCE
from .recipe import DEFAULTS
from .rows import every_row
from .sources import OF_A_MODEL, check_configuration, is_folder
from .unused import find_unused


# Options as for training, so that both read the same rows.
DATA = ("dataset", "scenes", "dataset_config", "train_split", "eval_split", "image_column", "caption_column")
VISION = "vision_name_or_path"
DTYPES = ("float32", "bfloat16", "float16")
PROBES = 1000


def precompute(
    model: str,
    rows: Dataset,
    folder: str | Path,
    *,
    image_column: str = "image",
    caption_column: str | Sequence[str] | None = None,
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

    With `caption_column` also those of every caption, all normalized: what a reference model makes of the data, for
    curation (`reference_embeddings.py`). Under torchrun every process embeds each n-th part.

    Args:
        model: see `ImageEncoder`; with `caption_column` folder or Hub name of a dual model with the sigmoid loss.
        rows: map-style dataset; row i of the embeddings is its row i.
        folder: gets the parts and the fingerprint of what they depend on; see `embedding_store.compute`.
        image_column: column of images.
        caption_column: column of captions, or several; strings or lists of them.
        pooling: see `ImageEncoder`.
        batch_size: images, or captions, in one forward.
        budget: of a NaFlex tower: patches of an image, and of a forward; see `encode_images`.
        workers: threads that read and prepare images; see `encode_images`.
        part_rows: rows in one file.
        device, dtype: of the forward; embeddings are saved in float32.
        max_bad_fraction: largest share of images that may be unreadable; training leaves them out.

    Raises:
        ValueError: the folder holds embeddings of something else, `budget` is for another tower, or the model is no
            reference.
        TooManyBadSamples: with the list.
    """
    check_columns(rows.column_names, "image_column", [image_column])
    image_processor = AutoImageProcessor.from_pretrained(model)
    budget = budget or ImageBudget()
    budget.check(image_processor)
    settings: dict[str, Any] = {"dtype": str(dtype)}
    settings |= fingerprint(model, pooling, image_processor, rows, image_column, budget)
    if caption_column is None:
        encoder, processor, texts = ImageEncoder(model, pooling), image_processor, []
    else:
        columns = [caption_column] if isinstance(caption_column, str) else caption_column
        check_columns(rows.column_names, "caption_column", columns)
        captions = captions_of(rows, columns)
        encoder, processor, of_the_model = reference_model(model, captions)
        texts = [text for some in captions for text in some]
        settings |= of_the_data(rows, image_column, captions) | of_the_model
    encoder.to(device, dtype)
    images = undecoded(rows.select_columns([image_column]), image_column)
    skips = SkipCounter(max_bad_fraction, grace=min(len(rows), 1000))

    def encode(first: int, last: int) -> Iterator[EncodedBatch]:
        numbers = range(first, min(last, len(images)))
        items = (row[image_column] for row in images.select(numbers))
        sizes: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "budget": budget}
        for batch in stream_images(encoder, image_processor, items, normalize=caption_column is not None, **sizes):
            skipped = [(f"example {first + place}", reason) for place, reason in batch.errors.items()]
            skips.add(len(batch.embeds), skipped)
            first += len(batch.embeds)
            yield batch
        some = texts[max(0, first - len(images)) : max(0, last - len(images))]
        yield from stream_texts(cast(Any, encoder), processor, some, batch_size=batch_size)

    store.compute(
        Path(folder),
        settings,
        len(rows) + len(texts),
        encode,
        encoder,
        part_rows=part_rows,
        what="images and captions" if texts else "images",
        remedy="use what they were made of, give another output_dir, or remove this one",
    )


def reference_model(
    name: str, captions: Sequence[Sequence[str]]
) -> tuple[SiglipExtModel, ProcessorMixin, dict[str, str | float]]:
    """A reference with its processor, and what embeddings of captions depend on, its temperature and bias among it.

    Raises:
        ValueError: it was not trained with the sigmoid loss.
    """
    model, processor = SiglipExtModel.from_pretrained(name), AutoProcessor.from_pretrained(name)
    check_reference(model)
    assert model.logit_bias is not None
    some = [texts[0] for texts in captions if texts][:PROBES]
    settings = {
        SCALE: model.logit_scale.item(),
        BIAS: model.logit_bias.item(),
        "text_weights": weights_digest(name, "text_"),
        "tokens": values_digest(processor.tokenizer(some, verbose=False)["input_ids"] if some else []),
    }
    return model, processor, settings


def register(commands: command_line.Subparsers) -> None:
    """Add the command with its options."""
    parser = command_line.add_command(
        commands,
        "precompute",
        run,
        summary="write the embeddings of a locked image tower, or of a reference model, once for all epochs and runs",
        description="Write image embeddings to train from with `--image_embeddings`, or those of images and captions "
        "to choose by with `--curation.reference_embeddings`. Run it again to continue where it stopped; under "
        "torchrun each process embeds a share of the parts.",
    )
    add, add_model = parser.add_argument, parser.add_mutually_exclusive_group(required=True).add_argument
    add_model(f"--{VISION}", help="folder or Hub name of a SigLIP model or another image model")
    add_model(f"--{REFERENCE}", help="folder or Hub name of a reference for curation, a SigLIP model of any size")
    add("--vision_pooling", help="how a tower from elsewhere gives its vector: first, pooler, mean, max, last")
    add("--output_dir", default="image-embeddings", help="folder of the embeddings")
    for field in fields(DataArguments):
        if field.name in DATA:
            several = field.default is MISSING
            kind: dict[str, Any] = {"nargs": "+"} if several else {"type": type(field.default or "")}
            default = argparse.SUPPRESS if several else field.default
            add(f"--{field.name}", default=default, help=field.metadata["help"].replace("%", "%%"), **kind)
    add("--batch_size", type=int, default=64, metavar="N", help="images, or captions, in one forward pass")
    add("--max_num_patches", type=int, metavar="N", help="NaFlex: patches of an image (default: its processor's)")
    add("--upscale", action=command_line.Switch, help="NaFlex: enlarge small images to that (default: yes)")
    add("--batch_tokens", type=int, metavar="N", help="NaFlex: patches in one forward pass, for --batch_size")
    add("--workers", type=int, metavar="N", help="threads that prepare images (default: one a core, at most 8)")
    add("--part_rows", type=int, default=10_000, metavar="N", help="embeddings in one file on disk")
    add("--device", help="where to compute (default: the accelerator if there is one, otherwise cpu)")
    add("--dtype", default="float32", choices=DTYPES, help="precision of the model; embeddings are float32")
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
    for option, rule in find_unused(argparse.Namespace(**{**DEFAULTS, **options}), given, DEFAULTS).items():
        raise ValueError(f"{option} has no effect {rule.why}: leave it out")
    check_output_dir(arguments.output_dir)
    reference = getattr(arguments, REFERENCE)
    field, name = (REFERENCE, reference) if reference is not None else (VISION, arguments.vision_name_or_path)
    check_configuration(field, name, is_folder(field, name, OF_A_MODEL))
    if reference is not None and arguments.vision_pooling is not None:
        raise ValueError(f"vision_pooling has no effect with {REFERENCE}, which brings its own: leave it out")
    same = ("image_column", "batch_size", "workers", "part_rows", "max_bad_fraction")
    precompute(
        name,
        every_row(data, () if reference is None else data.caption_column),
        arguments.output_dir,
        caption_column=None if reference is None else data.caption_column,
        pooling=arguments.vision_pooling,
        budget=ImageBudget(arguments.max_num_patches, arguments.upscale is not False, arguments.batch_tokens),
        device=checked_device(arguments.device or default_device()),
        dtype=getattr(torch, arguments.dtype),
        **{name: getattr(arguments, name) for name in same},
    )
    if store.processes()[0] == 0:
        print(f"The embeddings are in {arguments.output_dir}")
