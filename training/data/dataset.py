"""From a `datasets` dataset of images and captions to batches of pixels and tokens.

`ImageTextDataset` chooses one caption per image and epoch and keeps resized images in memory where they fit; decoding
and resizing at every epoch would cost more than a small model's training step. `ImageTextCollator` makes the batches.
Samples that cannot be used are skipped and counted (`samples.py`).
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, Image, load_dataset
from PIL.Image import Image as PILImage
from PIL.Image import open as open_image
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, ProcessorMixin

from modeling_siglip_ext.texts import NO_LENGTH

from .samples import BAD_SAMPLE, SkipCounter, as_captions


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


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
    return pixels if pixels.dtype == torch.uint8 else pixels.float().round().clamp(0, 255).to(torch.uint8)


def normalised(pixels: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """The rest of the image processor's work on a whole batch: uint8 (B, 3, H, W) → float32 of the same shape."""
    pixels = pixels.to(torch.float32, copy=True)  # then in place: a chunk of images is large
    if image_processor.do_rescale:
        pixels *= image_processor.rescale_factor
    if image_processor.do_normalize:
        mean = torch.tensor(image_processor.image_mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(image_processor.image_std, device=pixels.device).view(-1, 1, 1)
        pixels.sub_(mean).div_(std)
    return pixels


def stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """Images (3, H, W) as one tensor (B, 3, H, W), without a copy where they are the rows of one already."""
    whole = images[0]._base
    if whole is not None and whole.shape == (len(images), *images[0].shape):
        step = whole.stride(0) * whole.element_size()
        if all(image.data_ptr() == whole.data_ptr() + row * step for row, image in enumerate(images)):
            return whole
    return torch.stack(images)


def fixed_size(image_processor: BaseImageProcessor | None) -> tuple[int, int] | None:
    """Height and width that every image is resized to; None where each image has its own, as in NaFlex."""
    size = getattr(image_processor, "size", None) or {}
    return (size["height"], size["width"]) if "height" in size and "width" in size else None


class ImageTextDataset(torch.utils.data.Dataset):
    """One image and one caption per index.

    Where an example has several captions, one is drawn per epoch from a hash of (seed, epoch, index): the draw is the
    same for any number of processes and workers, and after a resume.

    Bad examples: one without a caption, or with a caption that is neither a string nor a list nor a mapping of
    strings, is left out from the start. An image that cannot be decoded is left out when images are cached, and
    otherwise replaced by the next good one whenever it comes up. `SiglipExtTrainer` counts and reports these.

    Args:
        dataset: a map-style `datasets.Dataset`.
        image_column: column of images (PIL on access).
        caption_column: column of captions, or several such columns, e.g. one a language. Each value is a string, a
            list of strings, or a mapping from languages to either. Empty captions and None are skipped.
        image_processor: if given, images are resized by it to uint8, once if all of them fit `cache_gib`.
        cache_gib: limit of that cache in GiB; 0 turns it off.
        seed: of the caption draw and of `shuffle_captions`.
        shuffle_captions: give every image the captions of another one. A control: nothing can be learnt from it.
        group_column: column that says which examples are variants of one thing; `groups` then has it for each index,
            and `SiglipExtTrainer` puts variants into one batch.
        max_bad_fraction: largest share of examples that may be left out here. 0 makes any bad example an error, also
            later on, as evaluation needs it.

    Raises:
        ValueError: for columns that are not there.
        TooManyBadSamples: a ValueError that lists the bad examples.
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
        group_column: str | None = None,
        max_bad_fraction: float = 0.01,
    ):
        caption_columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_columns(dataset.column_names, "image_column", [image_column])
        check_columns(dataset.column_names, "caption_column", caption_columns)
        if group_column is not None:
            check_columns(dataset.column_names, "group_column", [group_column])
        self.images = dataset.select_columns([image_column])
        self.image_column = image_column
        self.max_bad_fraction = max_bad_fraction
        self.skips = SkipCounter(max_bad_fraction, grace=len(dataset))
        self.captions: list[list[str]] = []
        self.rows: list[int] = []
        """For each index the row of `dataset`."""
        self._read_captions(zip(*(dataset[column] for column in caption_columns)))
        if shuffle_captions:
            self.captions = _deranged(self.captions, seed)
        self.seed = seed
        # In shared memory, so that persistent dataloader workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.pixels = None
        self._image_processor = image_processor if fixed_size(image_processor) else None
        if self._image_processor is not None:
            height, width = fixed_size(image_processor)
            if len(self.captions) * 3 * height * width <= cache_gib * 2**30:
                self.pixels = self._decode_all()
        self.groups = None
        if group_column is not None:
            groups = dataset[group_column]
            self.groups = [groups[row] for row in self.rows]

    def _read_captions(self, rows: Iterable[tuple]) -> None:
        skipped = []
        for row, values in enumerate(rows):
            try:
                self.captions.append(as_captions(values if len(values) > 1 else values[0]))
                self.rows.append(row)
            except (TypeError, ValueError) as error:
                skipped.append((f"example {row}", str(error)))
        self.skips.add(len(self.rows) + len(skipped), skipped)
        if skipped:
            self.images = self.images.select(self.rows)

    def _decode_all(self) -> torch.Tensor:
        """Every image, resized: uint8 (N, 3, H, W). Examples whose image is bad are left out."""
        pixels = torch.empty(len(self.images), 3, *fixed_size(self._image_processor), dtype=torch.uint8)
        kept, skipped = [], []
        for index in tqdm(range(len(self.images)), desc="decoding images", leave=False):
            try:
                pixels[len(kept)] = self._decode(index)
                kept.append(index)
            except BAD_SAMPLE as error:
                skipped.append((f"example {self.rows[index]}", reason(error)))
        self.skips.add(0, skipped)
        if skipped:
            self.images = self.images.select(kept)
            self.captions = [self.captions[index] for index in kept]
            self.rows = [self.rows[index] for index in kept]
        return pixels[: len(kept)]

    def _decode(self, index: int) -> torch.Tensor | PILImage:
        image = decoded(self.images[index][self.image_column])
        return image if self._image_processor is None else resized_uint8([image], self._image_processor)[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the captions of another epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.captions)

    def caption(self, index: int) -> str:
        """The caption of this epoch."""
        return drawn(self.captions[index], f"{self.seed}/{self._epoch.item()}/{index}")

    def __getitem__(self, index: int) -> dict:
        """`caption`; `pixels` (uint8, (3, H, W)) or `image` (PIL); `sample`, a note on what was skipped for it."""
        if self.pixels is not None:
            return self._item(index, self.pixels[index], [])
        skipped = []
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            try:
                return self._item(candidate, self._decode(candidate), skipped)
            except BAD_SAMPLE as error:
                if self.max_bad_fraction == 0:
                    raise ValueError(f"example {self.rows[candidate]}: {reason(error)}") from error
                skipped.append((f"example {self.rows[candidate]}", reason(error)))
        raise ValueError(f"none of the {len(self)} images can be decoded; the first: {skipped[0]}")

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """A batch of items, whose pixels are rows of one tensor: a large batch is not held twice."""
        if self._image_processor is None:
            return [self[index] for index in indices]
        pixels = torch.empty(len(indices), 3, *fixed_size(self._image_processor), dtype=torch.uint8)
        items = []
        for row, index in zip(pixels, indices):
            item = self[index]
            row.copy_(item["pixels"])
            items.append(item | {"pixels": row})
        return items

    def _item(self, index: int, image: torch.Tensor | PILImage, skipped: list[tuple[str, str]]) -> dict:
        return {
            "pixels" if isinstance(image, torch.Tensor) else "image": image,
            "caption": self.caption(index),
            "sample": {"name": self.rows[index], "read": 1 + len(skipped), "skipped": skipped},
        }


def reason(error: Exception) -> str:
    """What went wrong in words that are the same in every run: Pillow names objects by their address."""
    return re.sub(r" ?<[^<>]* object at 0x[0-9a-f]+>", "", f"{type(error).__name__}: {error}")


def decoded(image: PILImage | bytes | dict) -> PILImage:
    """An image from PIL, encoded bytes, or the {"bytes", "path"} of an undecoded `datasets` column; loaded, RGB.

    Raises:
        TypeError: for anything else.
        OSError and others of `samples.BAD_SAMPLE`: if Pillow cannot read it.
    """
    if isinstance(image, dict) and {"bytes", "path"} <= image.keys():
        image = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    if isinstance(image, bytes):
        image = open_image(io.BytesIO(image))
    if not isinstance(image, PILImage):
        raise TypeError(f"an image must be a PIL image or encoded bytes, got {type(image).__name__}")
    return image.convert("RGB")


def drawn(captions: Sequence[str], key: str) -> str:
    """One of the captions, chosen by a hash of the key."""
    if len(captions) == 1:
        return captions[0]
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return captions[int.from_bytes(digest, "little") % len(captions)]


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
        uint8: leave images as uint8, a quarter of the memory; `SiglipExtTrainer` normalises them on the device, with
            `mini_batch_size` chunk by chunk.

    Raises:
        ValueError: if no length is known, or (on call) if a row lacks a column.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        uint8: bool = False,
    ):
        self.processor = processor
        self.uint8 = uint8
        self.max_length = max_length or processor.tokenizer.model_max_length
        if self.max_length > NO_LENGTH:
            raise ValueError("the tokenizer has no model_max_length: pass max_length (the text tower's positions)")
        self.image_column = image_column
        self.caption_column = caption_column

    def __call__(self, examples: list[dict]) -> dict:
        """Returns pixel_values float32 or uint8 (B, 3, H, W), input_ids int64 (B, max_length), return_loss True."""
        captions = [self._caption(example) for example in examples]
        batch = dict(
            self.processor.tokenizer(
                captions, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
            )
        )
        image_processor = self.processor.image_processor
        if "embedding" in examples[0]:  # of `EmbeddingTextDataset`; the stand-in for the image tower passes them on
            batch["pixel_values"] = torch.stack([example["embedding"] for example in examples]).float()
        elif "pixels" in examples[0]:
            pixels = stacked([example["pixels"] for example in examples])
            batch["pixel_values"] = pixels if self.uint8 else normalised(pixels, image_processor)
        else:
            images = [self._image(example) for example in examples]
            batch["pixel_values"] = (
                resized_uint8(images, image_processor)
                if self.uint8
                else image_processor(images, return_tensors="pt")["pixel_values"]
            )
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
