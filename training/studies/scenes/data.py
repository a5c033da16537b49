"""Scenes for studies, as arrays in files that all runs on a machine read: drawn once, in parts, by whoever is free.

A part of the training scenes holds images, captions, what a decoder learns of them, and, where it is asked for, views
and masks. All are made by what makes batches in training; each scene is meant to be seen once.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from modeling_siglip_ext import train_tokenizer
from modeling_siglip_ext.captioning import CaptionDecoderConfig, TextFormat
from modeling_siglip_ext.files import new_folder

from ...data.locca import CaptionTargets
from ...data.regions import as_regions
from ...data.scenes import Scenes, SceneSettings
from ...objectives.masks import HIDDEN, MaskSettings, draw_hidden
from ...objectives.views import GLOBAL, LOCAL, ViewSettings, draw_views


SIZE, PATCH, NAMES = 72, 12, 26
GRID = SIZE // PATCH
TEXT_LENGTH, TARGET_LENGTH = 12, 24
SHARD = 2048
LOCAL_SIZE = SIZE // 2


@dataclass(frozen=True)
class DataSettings:
    """
    Args:
        objects: fewest and most emoji of a scene.
        box_scale: the largest integer in a box; 24 is a step of three pixels.
        views: local views of each image, besides a global one and hidden patches; None for none of these.
    """

    objects: tuple[int, int] = (1, 3)
    box_scale: int = 24
    views: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))  # a list when read from JSON


@dataclass(frozen=True)
class Part:
    """Scenes that figures are taken of.

    Args:
        images: uint8 (N, 3, 72, 72).
        labels: uint8 (N, 72, 72), the class of each pixel.
        tokens: of the captions, int64 (N, 12).
        captions: N texts.
        regions: of each scene its names and boxes, in shares of width and height.
    """

    images: torch.Tensor
    labels: torch.Tensor
    tokens: torch.Tensor
    captions: list[str]
    regions: list[list[tuple[str, tuple[float, ...]]]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)


def scene_settings(objects: tuple[int, int], seed: int = 0) -> SceneSettings:
    return SceneSettings(names=NAMES, objects=objects, size=SIZE, emoji_size=(24, 45), seed=seed)


def text_format(settings: DataSettings) -> TextFormat:
    return TextFormat(box_scale=settings.box_scale)


@lru_cache(maxsize=4)
def tokenizer_of(box_scale: int) -> PreTrainedTokenizerFast:
    """Trained on captions, and on the numbers and prefixes of boxes, so that most tokens are whole words."""
    scenes, form = Scenes(scene_settings((1, 3))), TextFormat(box_scale=box_scale)
    texts = []
    for row in map(scenes.text_of, scenes.plans(range(2000))):
        boxes = [f"{form.referring} {form.grounded} : {form.write_box(region['box'])}" for region in row["regions"]]
        texts += [row["caption"], f"{form.caption} ", *boxes]
    return train_tokenizer(texts, vocab_size=500, max_length=TEXT_LENGTH)


def decoder_config(settings: DataSettings, width: int, **sizes: Any) -> CaptionDecoderConfig:
    """A decoder of the study's tokenizer on an image tower of this width."""
    tokenizer = tokenizer_of(settings.box_scale)
    # an integer beyond what the vocabulary has whole takes a token a digit
    length = TARGET_LENGTH if settings.box_scale < 100 else 2 * TARGET_LENGTH
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        **sizes,
    }
    return CaptionDecoderConfig(
        vocab_size=len(tokenizer),
        encoder_hidden_size=width,
        max_length=length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        text_format=text_format(settings),
        **shape,
    )


def text_tokens(captions: list[str], box_scale: int) -> torch.Tensor:
    options = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True}
    return tokenizer_of(box_scale)(captions, return_tensors="pt", **options)["input_ids"]


@lru_cache(maxsize=16)
def load_part(objects: tuple[int, int], count: int, seed: int, box_scale: int, split: str = "validation") -> Part:
    """Scenes of the same emoji as in training that no run trains on; each seed has others."""
    scenes = Scenes(replace(scene_settings(objects, seed), held_out=count, count=count), split)
    rows = list(scenes.rows(range(count)))
    images = torch.from_numpy(np.stack([np.asarray(row["image"]).transpose(2, 0, 1) for row in rows]))
    labels = torch.from_numpy(np.stack([scenes.labels(index) for index in range(count)]))
    captions = [row["caption"] for row in rows]
    regions = [[(one["text"], tuple(one["box"])) for one in row["regions"]] for row in rows]
    return Part(images, labels, text_tokens(captions, box_scale), captions, regions)


def shards_of(settings: DataSettings, scenes: int) -> list[tuple[DataSettings, int]]:
    """The parts that so many training scenes lie in, as arguments of `make_shard`."""
    return [(settings, number) for number in range(-(-scenes // SHARD))]


def shard_folder(settings: DataSettings, number: int) -> Path:
    key = json.dumps([asdict(settings), SHARD, TEXT_LENGTH, TARGET_LENGTH, "3"])
    name = f"siglip-ext-scenes-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name / f"{number:05d}"


def make_shard(settings: DataSettings, number: int) -> None:
    """Draw a part of the training scenes, unless that was done before."""
    folder = shard_folder(settings, number)
    if folder.is_dir():
        return
    arrays = draw_shard(settings, range(number * SHARD, (number + 1) * SHARD))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(folder) as draft:
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", array)
    except FileExistsError:
        pass  # another process was faster


def draw_shard(settings: DataSettings, indices: range) -> dict[str, np.ndarray]:
    """The arrays of some training scenes, by their names in a batch."""
    scenes = Scenes(scene_settings(settings.objects))
    config = decoder_config(settings, 1)
    targets = CaptionTargets(tokenizer_of(settings.box_scale), config)
    rows = list(scenes.rows(indices))
    captions = [row["caption"] for row in rows]
    keys = [f"0/0/{index}" for index in indices]
    written = [
        targets.of_example(row["caption"], as_regions(row["regions"]), key)
        for row, key in zip(rows, keys, strict=True)
    ]
    labels = np.full((len(rows), len(targets.settings.tasks), config.max_length), config.pad_token_id, np.int16)
    given = np.zeros(labels.shape, bool)
    for row, texts in enumerate(written):
        for task, text in enumerate(texts):
            assert text is not None  # a scene has regions
            labels[row, task, : len(text.ids)] = text.ids
            given[row, task, text.given : len(text.ids)] = True
    images = np.stack([np.asarray(row["image"]).transpose(2, 0, 1) for row in rows])
    arrays = {
        "pixels": images,
        "input_ids": text_tokens(captions, settings.box_scale).numpy().astype(np.int16),
        "caption_labels": labels,
        "caption_weights": given,
    }
    if settings.views is not None:
        views = ViewSettings(SIZE, LOCAL_SIZE, settings.views)
        drawn = [draw_views(torch.from_numpy(image), key, views) for image, key in zip(images, keys)]
        hidden = [draw_hidden(key, MaskSettings(GRID)) for key in keys]
        arrays[GLOBAL], arrays[LOCAL] = (torch.stack(some).numpy() for some in zip(*drawn))
        arrays[HIDDEN] = torch.stack(hidden).numpy()
    return arrays


class TrainingScenes:
    """So many training scenes, in an order that follows from a seed.

    Args:
        settings: of the scenes.
        count: how many; more than were drawn before are drawn here.
        seed: of the order.
    """

    def __init__(self, settings: DataSettings, count: int, seed: int):
        self.shards = []
        for one in shards_of(settings, count):
            make_shard(*one)
            files = shard_folder(*one).glob("*.npy")
            self.shards.append({file.stem: np.load(file, mmap_mode="r") for file in files})
        self.names = {name for shard in self.shards for name in shard}
        self.order = np.random.default_rng(seed).permutation(count)

    def __len__(self) -> int:
        return len(self.order)

    def batch(self, start: int, size: int, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Rows `start` to `start + size` of the order, of the arrays that are asked for."""
        wanted = self.order[start : start + size]
        shards, rows = wanted // SHARD, wanted % SHARD
        return {
            name: torch.from_numpy(np.stack([self.shards[s][name][r] for s, r in zip(shards, rows)])) for name in names
        }
