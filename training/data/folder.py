"""A folder of images with captions as a `datasets` dataset, and the check of the columns that settings name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from modeling_siglip_ext.evaluation.data.image_folder import metadata_files, read_folder


def check_columns(present: Iterable[str], setting: str, columns: Iterable[str]) -> None:
    """Check that the dataset has the columns that a setting names.

    Raises:
        ValueError: naming the setting, the missing column and the columns that are there.
    """
    present = list(present)
    for column in columns:
        if column not in present:
            raise ValueError(
                f"{setting}={column!r}: the dataset has no such column. It has: {', '.join(map(repr, present))}. "
                f"Set {setting} to one of them."
            )


def check_map_style(rows: Any) -> None:
    """Check that rows are those of a `datasets.Dataset`, and say how they become so.

    Raises:
        TypeError: they are something else.
    """
    if isinstance(rows, Dataset):
        return
    what = f"a {type(rows).__name__}"
    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        remedy = f"choose one of its splits: {', '.join(map(repr, rows))}"
    elif isinstance(rows, IterableDataset):
        what, remedy = "a stream", "give it to ImageTextStream"
    elif isinstance(rows, (str, Path)):
        remedy = "read a folder with load_image_folder, other files with datasets.load_dataset"
    else:
        remedy = "make one with datasets.Dataset.from_list or from_dict"
    raise TypeError(f"ImageTextDataset takes a datasets.Dataset, got {what}: {remedy}")


def load_image_folder(folder: str | Path) -> Dataset:
    """Read a folder of images with captions.

    Two layouts are understood: `metadata.csv`, `.tsv`, `.json`, `.jsonl` or `.parquet` with a `file_name` column (its
    other columns are kept), or a text file beside each image (`cat.jpg`, `cat.txt`) with one caption a line. An image
    without a caption has an empty list; `ImageTextDataset` leaves it out and counts it.

    Returns:
        Dataset: column `image` (decoded to PIL on access) and the metadata columns, or `caption` (list of str) for the
        second layout.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no image.
        ValueError: no image has a caption, or a file of captions is not UTF-8; named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    rows = read_folder(folder)
    if not metadata_files(folder):
        check_captions(rows, folder)
    return rows


def check_captions(rows: Dataset, folder: str | Path) -> None:
    """
    Raises:
        ValueError: no image of a folder without metadata has a caption.
    """
    if "caption" not in rows.column_names or not any(rows["caption"]):
        first = rows.data.column("image").slice(0, 5).to_pylist()
        some = ", ".join(Path(image["path"]).name for image in first)
        raise ValueError(
            f"{len(rows)} of {len(rows)} images in {folder} have no caption, e.g. {some}. Put a text file of "
            "the same name beside each image, or one metadata.csv with the columns file_name and caption."
        )
