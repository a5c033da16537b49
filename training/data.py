"""From a `datasets` dataset of images and captions to batches of pixels and tokens.

`ImageTextDataset` chooses one caption per image and epoch and keeps resized images in memory where they fit; decoding
and resizing at every epoch would cost more than a small model's training step. `ImageTextCollator` makes the batches.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, Image, load_dataset
from PIL.Image import Image as PILImage
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, ProcessorMixin


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# A tokenizer without a length of its own reports a number beyond any text tower.
NO_LENGTH = 1_000_000


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

    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    captions = [_caption_lines(path.with_suffix(".txt")) for path in images]
    bare = [path for path, lines in zip(images, captions) if not lines]
    if bare:
        some = ", ".join(path.name for path in bare[:5])
        raise ValueError(
            f"{len(bare)} of {len(images)} images in {folder} have no caption, e.g. {some}. Put a text file of "
            "the same name beside each image, or one metadata.csv with the columns file_name and caption."
        )
    columns = {"image": [str(path) for path in images], "caption": captions}
    return Dataset.from_dict(columns).cast_column("image", Image())


def _caption_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def resized_uint8(images: Sequence[PILImage], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Resize as the image processor does, but neither rescale nor normalise: uint8 of shape (B, 3, H, W)."""
    pixels = image_processor(
        [image.convert("RGB") for image in images], do_rescale=False, do_normalize=False, return_tensors="pt"
    )["pixel_values"]
    return pixels.float().round().clamp(0, 255).to(torch.uint8)


def normalised(pixels: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """The rest of the image processor's work on a whole batch: uint8 (B, 3, H, W) → float32 of the same shape."""
    pixels = pixels.float()
    if image_processor.do_rescale:
        pixels = pixels * image_processor.rescale_factor
    if image_processor.do_normalize:
        mean = torch.tensor(image_processor.image_mean).view(-1, 1, 1)
        std = torch.tensor(image_processor.image_std).view(-1, 1, 1)
        pixels = (pixels - mean) / std
    return pixels


class ImageTextDataset(torch.utils.data.Dataset):
    """One image and one caption per index.

    Where an example has several captions, one is drawn per epoch from a hash of (seed, epoch, index): the draw is the
    same for any number of processes and workers, and after a resume.

    Args:
        dataset: a map-style `datasets.Dataset`.
        image_column: column of images (PIL on access).
        caption_column: column of captions, each a string or a list of strings; or several such columns. Empty captions
            and None are skipped.
        image_processor: if given, images are resized by it once and kept as uint8, provided they fit `cache_gib`.
        cache_gib: limit of that cache in GiB; 0 turns it off.
        seed: of the caption draw and of `shuffle_captions`.
        shuffle_captions: give every image the captions of another one. A control: nothing can be learnt from it.

    Raises:
        ValueError: for columns that are not there, captions that are neither strings nor lists of strings, and
            examples without a caption.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        *,
        image_processor: BaseImageProcessor | None = None,
        cache_gib: float = 2.0,
        seed: int = 0,
        shuffle_captions: bool = False,
    ):
        caption_columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_columns(dataset.column_names, "image_column", [image_column])
        check_columns(dataset.column_names, "caption_column", caption_columns)
        self.images = dataset.select_columns([image_column])
        self.image_column = image_column
        rows = zip(*(dataset[column] for column in caption_columns))
        self.captions = [_as_captions(values, index) for index, values in enumerate(rows)]
        if shuffle_captions:
            self.captions = _deranged(self.captions, seed)
        self.seed = seed
        # In shared memory, so that persistent dataloader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.pixels = None
        if image_processor is not None:
            size = image_processor.size
            if len(self.captions) * 3 * size["height"] * size["width"] <= cache_gib * 2**30:
                self.pixels = self._decode_all(image_processor)

    def _decode_all(self, image_processor: BaseImageProcessor) -> torch.Tensor:
        """Every image, resized: uint8 (N, 3, H, W)."""
        pixels = torch.empty(
            len(self.images), 3, image_processor.size["height"], image_processor.size["width"], dtype=torch.uint8
        )
        step = 256
        for start in tqdm(range(0, len(self.images), step), desc="decoding images", leave=False):
            pixels[start : start + step] = resized_uint8(
                self.images[start : start + step][self.image_column], image_processor
            )
        return pixels

    def set_epoch(self, epoch: int) -> None:
        """Choose the captions of another epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int) -> str:
        """The caption of this epoch."""
        captions = self.captions[index]
        if len(captions) == 1:
            return captions[0]
        digest = hashlib.blake2b(f"{self.seed}/{self._epoch.item()}/{index}".encode(), digest_size=8).digest()
        return captions[int.from_bytes(digest, "little") % len(captions)]

    def __getitem__(self, index: int) -> dict:
        caption = self.caption(index)
        if self.pixels is not None:
            return {"pixels": self.pixels[index], "caption": caption}
        return {"image": self.images[index][self.image_column], "caption": caption}


def _as_captions(values: Sequence[str | list[str] | None], index: int) -> list[str]:
    """The captions of one example, from its caption columns."""
    captions = []
    for value in values:
        captions += value if isinstance(value, list) else [value]
    captions = [caption for caption in captions if caption is not None]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"example {index}: a caption must be a string or a list of strings, got {values!r}")
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise ValueError(f"example {index} has no caption (got {values!r}); remove it from the dataset")
    return captions


def _deranged(captions: list[list[str]], seed: int) -> list[list[str]]:
    """Captions moved so that none stays with its image: along one random cycle through all of them."""
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
    moved = list(captions)
    for here, there in zip(order, order[1:] + order[:1]):
        moved[here] = captions[there]
    return moved


class ImageTextCollator:
    """Batches of `pixel_values`, `input_ids` and whatever else the processor makes of text, with `return_loss=True`.

    Takes the examples of `ImageTextDataset`, or the bare rows of a (streaming) `datasets` dataset; of several
    captions in such a row one is drawn with torch's random state.

    Args:
        processor: image processor and tokenizer.
        max_length: tokens per text; the tokenizer's `model_max_length` unless given. Give the text tower's
            `max_position_embeddings`: SigLIP towers take full-length texts.
        image_column, caption_column: keys of bare rows.

    Raises:
        ValueError: if no length is known, or (on call) if a row lacks a column.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
    ):
        self.processor = processor
        self.max_length = max_length or processor.tokenizer.model_max_length
        if self.max_length > NO_LENGTH:
            raise ValueError("the tokenizer has no model_max_length: pass max_length (the text tower's positions)")
        self.image_column = image_column
        self.caption_column = caption_column

    def __call__(self, examples: list[dict]) -> dict:
        """Returns pixel_values float32 (B, 3, H, W), input_ids int64 (B, max_length), return_loss True."""
        captions = [self._caption(example) for example in examples]
        batch = dict(
            self.processor.tokenizer(
                captions, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
            )
        )
        if "pixels" in examples[0]:
            pixels = torch.stack([example["pixels"] for example in examples])
            batch["pixel_values"] = normalised(pixels, self.processor.image_processor)
        else:
            images = [self._image(example) for example in examples]
            batch["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        batch["return_loss"] = True
        return batch

    def _column(self, example: dict, plain: str, setting: str, column: str):
        if plain in example:
            return example[plain]
        check_columns(example, setting, [column])
        return example[column]

    def _image(self, example: dict) -> PILImage:
        return self._column(example, "image", "image_column", self.image_column).convert("RGB")

    def _caption(self, example: dict) -> str:
        value = self._column(example, "caption", "caption_column", self.caption_column)
        if isinstance(value, str):
            return value
        return value[torch.randint(len(value), ()).item()]
