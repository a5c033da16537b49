"""`siglip-ext-train regions`: boxes for a dataset of images with captions, by an open-vocabulary detector."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from modeling_siglip_ext import command_line
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.dual_models import checked_device, default_device
from modeling_siglip_ext.encoding import batches_of
from modeling_siglip_ext.evaluation.data.text_files import caption_lines, read_text
from modeling_siglip_ext.files import check_output_dir, new_file, read_json, write_json
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.inputs import undecoded

from ..data.detection import DetectionSettings, Detector
from ..data.folder import check_columns
from ..data.reference_embeddings import captions_of, of_the_data
from ..data.samples import SkipCounter, captions_if_any
from .fields import DataArguments
from .rows import every_row
from .sources import OF_A_MODEL, check_configuration, is_folder


PART_ROWS = 1000
SCHEMA = pa.schema({
    "row": pa.int64(),
    "regions": pa.list_(pa.struct({"box": pa.list_(pa.float64()), "text": pa.string(), "score": pa.float64()})),
})  # fmt: skip
OTHER = "it has regions that were found otherwise ({}); give another output_dir, or remove this one"


def find_regions(
    detector: Detector,
    rows: Dataset,
    folder: str | Path,
    settings: DetectionSettings,
    *,
    made_of: Mapping[str, Any],
    image_column: str = "image",
    caption_column: Sequence[str] = ("caption",),
    batch_size: int = 8,
    max_bad_fraction: float = 0.01,
) -> None:
    """Write the regions of every row, in parts of a thousand; what an earlier call has finished is left as it is.

    Under torchrun every process takes each n-th part. An image that cannot be read has none, and is counted.

    Args:
        detector: see `Detector`.
        rows: map-style dataset; row i of what is written is of its row i.
        folder: gets Parquet files with the columns `row` and `regions`.
        settings: what is asked for and kept.
        made_of: the detector's and the dataset's names, for a later call to compare.
        image_column, caption_column: of the rows.
        batch_size: images in one forward; each is asked for as many words as the one with the most.
        max_bad_fraction: largest share of images that may be unreadable.

    Raises:
        ValueError: the folder has regions of something else, or a column is not there.
        TooManyBadSamples: with the list.
    """
    check_columns(rows.column_names, "image_column", [image_column])
    check_columns(rows.column_names, "caption_column", caption_column)
    folder = Path(folder)
    data = of_the_data(rows, image_column, captions_of(rows, caption_column))
    wanted = {**made_of, **asdict(settings), "categories": list(settings.categories), **data, "rows": len(rows)}
    rank, world = store.processes()
    if (folder / store.SETTINGS).exists():
        saved = read_json(folder / store.SETTINGS, f"remove {folder}")
        differing = sorted(name for name in {*saved, *wanted} if saved.get(name) != wanted.get(name))
        if differing:
            raise ValueError(f"{folder}: {OTHER.format(', '.join(differing))}")
    elif rank == 0:
        write_json(folder / store.SETTINGS, wanted)
    skips = SkipCounter(max_bad_fraction, grace=min(len(rows), 1000))
    rows = undecoded(rows, image_column)
    parts = [(folder / f"part-{first // PART_ROWS:05d}.parquet", first) for first in range(0, len(rows), PART_ROWS)]
    missing = [part for part in parts[rank::world] if not part[0].exists()]
    with tqdm(
        total=sum(min(PART_ROWS, len(rows) - first) for _, first in missing), unit=" images", disable=None
    ) as bar:
        for path, first in missing:
            found: list[list[dict[str, Any]]] = []
            for places in batches_of(range(first, min(first + PART_ROWS, len(rows))), batch_size):
                found += _regions(detector, rows, places, settings, image_column, caption_column, skips)
                bar.update(len(places))
            columns = {"row": range(first, first + len(found)), "regions": found}
            with new_file(path, replace=True) as draft:
                pyarrow.parquet.write_table(pa.table(columns, SCHEMA), draft)
    store.wait_for_all()


def _regions(
    detector: Detector,
    rows: Dataset,
    places: Sequence[int],
    settings: DetectionSettings,
    image_column: str,
    caption_column: Sequence[str],
    skips: SkipCounter,
) -> list[list[dict[str, Any]]]:
    images: dict[int, Image.Image] = {}
    queries: dict[int, list[str]] = {}
    bad = []
    for place in places:
        row = rows[place]
        try:
            images[place] = load_image(row[image_column])
            queries[place] = settings.queries(captions_if_any([row[name] for name in caption_column]))
        except UnreadableImageError as error:
            bad.append((f"example {place}", str(error)))
    skips.add(len(places), bad)
    found = detector(list(images.values()), [queries[place] for place in images], settings) if images else []
    of_place = dict(zip(images, found))
    return [of_place.get(place, []) for place in places]


def register(commands: command_line.Subparsers) -> None:
    """Add the command with its options."""
    parser = command_line.add_command(
        commands,
        "regions",
        run,
        summary="find boxes for a dataset's captions, for captioning, with a detector",
        description="Ask an OWL-ViT or OWLv2 for the n-grams of each caption, as SigLIP 2's data were made, and write "
        "a table to train from with `--regions_file`. Run it again to continue where it stopped; under torchrun each "
        "process takes a share of the parts.",
    )
    add = parser.add_argument
    add("--detector", required=True, metavar="MODEL", help="folder or Hub name: google/owlv2-base-patch16-ensemble")
    add("--dataset", required=True, help="as for training: a folder, a table, a Hub name, `emoji` or `scenes`")
    add("--output_dir", default="regions", help="folder of the table")
    add("--dataset_config", help="configuration of a Hub dataset")
    add("--train_split", default="train", help="split of a Hub dataset")
    add("--eval_split", help="a second split, whose rows come after those of the first")
    add("--image_column", default="image", help="column of images")
    add("--caption_column", nargs="+", default=["caption"], help="column of captions, or several")
    add("--categories", metavar="FILE", help="text file with a category a line, asked for in every image")
    add("--longest", type=int, default=10, metavar="N", help="words of an n-gram at most; 0 asks for categories alone")
    add("--min_score", type=float, default=0.1, help="of a box to be kept; training has a bar of its own, 0.3")
    add("--overlap", type=float, default=0.5, help="of two boxes that share more (IoU) the surer one is kept")
    add("--batch_size", type=int, default=8, metavar="N", help="images in one forward pass")
    add("--device", help="where to compute (default: the accelerator if there is one, otherwise cpu)")
    add("--max_bad_fraction", type=float, default=0.01, help="share of images that may be unreadable")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        OSError, ValueError: naming what is wrong and the remedy.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {arguments.batch_size}")
    check_output_dir(arguments.output_dir)
    check_configuration("detector", arguments.detector, is_folder("detector", arguments.detector, OF_A_MODEL))
    categories: list[str] = []
    if arguments.categories is not None:
        categories = list(dict.fromkeys(caption_lines(read_text(arguments.categories))))
    settings = DetectionSettings(tuple(categories), arguments.longest, arguments.min_score, arguments.overlap)
    if not settings.longest and not settings.categories:
        raise ValueError("longest=0 leaves nothing to ask for: give --categories")
    of_data = ("dataset", "dataset_config", "train_split", "eval_split", "image_column", "caption_column")
    data = DataArguments(**{name: getattr(arguments, name) for name in of_data})
    rows = every_row(data, data.caption_column)
    made_of = {name: getattr(arguments, name) for name in ("detector", *of_data)}
    device: str | torch.device = checked_device(arguments.device or default_device())
    find_regions(
        Detector(arguments.detector, device),
        rows,
        arguments.output_dir,
        settings,
        made_of=made_of,
        image_column=data.image_column,
        caption_column=data.caption_column,
        batch_size=arguments.batch_size,
        max_bad_fraction=arguments.max_bad_fraction,
    )
    if store.processes()[0] == 0:
        print(f"The regions are in {arguments.output_dir}; train with --regions_file {arguments.output_dir}")
