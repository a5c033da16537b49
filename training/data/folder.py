"""A folder of images with captions as a `datasets` dataset, and the check of the columns that settings name."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, Image, load_dataset

from modeling_siglip_ext.images import is_image_file

from .samples import caption_lines


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


def load_image_folder(folder: str | Path) -> Dataset:
    """Read a folder of images with captions.

    Two layouts are understood: `metadata.csv`, `metadata.jsonl` or `metadata.parquet` with a `file_name` column (the
    `imagefolder` layout of `datasets`; its other columns are kept), or a text file beside each image (`cat.jpg`,
    `cat.txt`) with one caption a line.

    Returns:
        Dataset: column `image` (decoded to PIL on access) and the metadata columns, or `caption` (list of str) for the
        second layout.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no image.
        ValueError: listing the images without a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if any(folder.glob("metadata.*")):
        return load_dataset("imagefolder", data_dir=str(folder), split="train", drop_labels=True)

    images = sorted(path for path in folder.rglob("*") if is_image_file(path))
    if not images:
        raise FileNotFoundError(f"{folder} holds no image: no file has the suffix of one")
    captions = [_captions_in(path.with_suffix(".txt")) for path in images]
    bare = [path for path, lines in zip(images, captions) if not lines]
    if bare:
        some = ", ".join(path.name for path in bare[:5])
        raise ValueError(
            f"{len(bare)} of {len(images)} images in {folder} have no caption, e.g. {some}. Put a text file of "
            "the same name beside each image, or one metadata.csv with the columns file_name and caption."
        )
    columns = {"image": [str(path) for path in images], "caption": captions}
    return Dataset.from_dict(columns).cast_column("image", Image())


def _captions_in(path: Path) -> list[str]:
    return caption_lines(path.read_text(encoding="utf-8")) if path.is_file() else []
