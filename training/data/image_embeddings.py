"""Embeddings of a locked image tower, computed once: written in shards, checked by fingerprint, trained from.

LiT and SigLiT spend most of their time on images whose embeddings never change. Here they are computed once; training
from them decodes no image and needs no image tower.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_siglip_ext import SiglipExtConfig
from modeling_siglip_ext.modeling_siglip_ext import build_adapter, embedding_size, load_tower, source_config

from .dataset import check_columns, decoded, drawn, reason
from .fingerprint import fingerprint
from .samples import BAD_SAMPLE, SkipCounter, as_captions


FINGERPRINT = "fingerprint.json"


class EmbeddingTower(nn.Module):
    """Takes the place of an image tower: its "pixel values" (B, D) are the embeddings already."""

    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def forward(self, pixel_values: torch.Tensor, **kwargs):
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values[:, None], pooler_output=pixel_values)


class ImageEncoder(nn.Module):
    """An image tower without a text tower: (B, 3, H, W) → embeddings (B, D) before normalisation.

    Args:
        name: folder or Hub name of a SigLIP model, an image tower of ours, or any image model of transformers.
        pooling: how a model from elsewhere gives its vector; see `SiglipExtConfig`.
    """

    def __init__(self, name: str, pooling: str | None = None):
        super().__init__()
        config = SiglipExtConfig(vision_config=source_config(name, "vision"), vision_pooling=pooling)
        self.width = embedding_size(config, "vision")
        self.tower = load_tower(config, "vision", name)
        self.adapter = build_adapter(config, "vision", self.tower)
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.tower(pixel_values) if self.adapter is None else self.adapter(self.tower, pixel_values)
        return outputs.pooler_output


# ---- writing


def precompute(
    model: str,
    rows: Dataset,
    folder: Path,
    *,
    image_column: str = "image",
    pooling: str | None = None,
    batch_size: int = 64,
    shard_size: int = 10_000,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    max_bad_fraction: float = 0.01,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Write the embedding of every image as shards; what an earlier call has finished is left as it is.

    Args:
        model: see `ImageEncoder`.
        rows: map-style dataset; row i of the shards is its row i.
        folder: gets `embeddings-00000.safetensors`, ... and `fingerprint.json`.
        image_column: column of images.
        pooling: see `ImageEncoder`.
        batch_size: images in one forward.
        shard_size: rows in one file.
        device, dtype: of the forward; embeddings are saved in float32.
        max_bad_fraction: largest share of images that may be unreadable; training leaves them out.
        rank, world_size: this process's share of the shards.

    Raises:
        ValueError: the folder holds embeddings of something else.
        TooManyBadSamples: with the list.
    """
    check_columns(rows.column_names, "image_column", [image_column])
    image_processor = AutoImageProcessor.from_pretrained(model)
    expected = fingerprint(model, pooling, image_processor, rows, image_column) | {"shard_size": shard_size}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, expected)
    encoder = ImageEncoder(model, pooling).to(device, dtype)
    skips = SkipCounter(max_bad_fraction, grace=min(len(rows), 1000))
    shards = range(rank, math.ceil(len(rows) / shard_size), world_size)
    todo = [shard for shard in shards if not _shard_path(folder, shard).exists()]
    images = rows.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
    with tqdm(total=len(todo) * shard_size, desc="embedding images", unit="image") as bar:
        for shard in todo:
            start = shard * shard_size
            end = min(start + shard_size, len(rows))
            embeddings, valid = torch.zeros(end - start, encoder.width), torch.zeros(end - start, dtype=torch.uint8)
            for first in range(start, end, batch_size):
                places, pictures, skipped = [], [], []
                for row in range(first, min(first + batch_size, end)):
                    try:
                        pictures.append(decoded(images[row][image_column]))
                        places.append(row - start)
                    except BAD_SAMPLE as error:
                        skipped.append((f"example {row}", reason(error)))
                skips.add(len(pictures) + len(skipped), skipped)
                if pictures:
                    pixels = image_processor(pictures, return_tensors="pt")["pixel_values"].to(device, dtype)
                    with torch.inference_mode():
                        embeddings[places] = encoder(pixels).float().cpu()
                    valid[places] = 1
                bar.update(len(pictures) + len(skipped))
            _replace(_shard_path(folder, shard), {"image_embeds": embeddings, "valid": valid})


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"embeddings-{shard:05d}.safetensors"


def _replace(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial)
    partial.replace(path)


def _claim(folder: Path, expected: dict) -> None:
    """Write the fingerprint, or compare it with the one that is there."""
    path = folder / FINGERPRINT
    if path.exists():
        _compare(folder, expected, "give another output_dir, or remove this one")
        return
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _compare(folder: Path, expected: dict, remedy: str) -> None:
    saved = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    differing = [name for name, value in expected.items() if saved.get(name) != value]
    if differing:
        changes = ", ".join(f"{name} (there {saved.get(name)}, now {expected[name]})" for name in differing)
        raise ValueError(
            f"{folder} holds embeddings of something else: {changes}. Use what they were made of, or {remedy}"
        )


# ---- reading


def load_embeddings(
    folder: str | Path, model: str, rows: Dataset, image_column: str = "image", pooling: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (N, D) float32 and validity (N,) bool of all rows, mapped from the files.

    Raises:
        FileNotFoundError: no embeddings there, or not all shards.
        ValueError: they were made by another model, with other preprocessing or from other images.
    """
    folder = Path(folder)
    if not (folder / FINGERPRINT).is_file():
        raise FileNotFoundError(f"{folder} has no {FINGERPRINT}: run `siglip-ext-train precompute` first")
    image_processor = AutoImageProcessor.from_pretrained(model)
    _compare(folder, fingerprint(model, pooling, image_processor, rows, image_column), "precompute them again")
    shard_size = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))["shard_size"]
    paths = [_shard_path(folder, shard) for shard in range(math.ceil(len(rows) / shard_size))]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(paths)} shards, e.g. {missing[0]}: run `siglip-ext-train "
            "precompute` again, it continues where it stopped"
        )
    shards = [load_file(path) for path in paths]
    if len(shards) == 1:  # stays mapped; several are copied into one
        return shards[0]["image_embeds"], shards[0]["valid"].bool()
    return tuple(torch.cat([shard[name] for shard in shards]) for name in ("image_embeds", "valid"))


class EmbeddingTextDataset(torch.utils.data.Dataset):
    """One image embedding and one caption per index, in place of `ImageTextDataset`.

    Args:
        rows: the dataset; only its captions are read.
        embeddings: (M, D), and `valid` (M,) whether an image could be read.
        indices: for each of `rows` its row of `embeddings`; the same number by default.
        caption_column, seed, max_bad_fraction: as for `ImageTextDataset`.
    """

    def __init__(
        self,
        rows: Dataset,
        embeddings: torch.Tensor,
        valid: torch.Tensor,
        indices: Sequence[int] | None = None,
        *,
        caption_column: str | Sequence[str] = "caption",
        seed: int = 0,
        max_bad_fraction: float = 0.01,
    ):
        columns = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        check_columns(rows.column_names, "caption_column", columns)
        indices = range(len(rows)) if indices is None else indices
        self.embeddings, self.seed = embeddings, seed
        self.captions: list[list[str]] = []
        self.rows: list[int] = []
        self.places: list[int] = []
        skipped = []
        for row, (place, *values) in enumerate(zip(indices, *(rows[column] for column in columns))):
            try:
                if not valid[place]:
                    raise ValueError("its image could not be read by precompute")
                self.captions.append(as_captions(values if len(values) > 1 else values[0]))
            except (TypeError, ValueError) as error:
                skipped.append((f"example {row}", str(error)))
                continue
            self.rows.append(row)
            self.places.append(place)
        SkipCounter(max_bad_fraction, grace=len(rows)).add(len(rows), skipped)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        return {
            "embedding": self.embeddings[self.places[index]],
            "caption": drawn(self.captions[index], f"{self.seed}/{self._epoch.item()}/{index}"),
            "sample": {"name": self.rows[index], "read": 1, "skipped": []},
        }
