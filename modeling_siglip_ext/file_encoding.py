"""Embeddings of files, and what tells their contents from others; of images both come from the same bytes."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .embedded_files import READERS, EncodedFile, File, hash_file, stat_file
from .encoding import ahead, stream_images
from .video_frames import Sampling
from .videos import stream_videos


def read_file(root: Path, name: str) -> tuple[File, bytes | None]:
    """A file and its contents, None where it cannot be read.

    The time of change is that before reading: what is written meanwhile is seen as changed by the next run.
    """
    file = stat_file(root, name) or File(name, 0, 0)
    try:
        content = (root / name).read_bytes()
    except OSError:
        return file, None
    digest = hashlib.blake2b(content, digest_size=16)
    return replace(file, size=len(content), content=digest.hexdigest()), content


def encode_image_files(
    model: nn.Module, processor: Any, root: Path, names: Sequence[str], **options: Any
) -> Iterator[EncodedFile]:
    """Embeddings of unit length of image files, in order; `options` are those of `stream_images`."""
    on_their_way: deque[File] = deque()

    def contents() -> Iterator[Any]:
        for file, content in ahead(partial(read_file, root), names, READERS, 2 * READERS):
            on_their_way.append(file)
            path = str(root / file.name)
            yield path if content is None else {"bytes": content, "path": path}

    for batch in stream_images(model, processor, contents(), normalize=True, **options):
        for place, row in enumerate(batch.embeds):
            yield EncodedFile(on_their_way.popleft(), row[None], batch.errors.get(place))


def encode_video_files(
    model: nn.Module, processor: Any, root: Path, names: Sequence[str], sampling: Sampling, **options: Any
) -> Iterator[EncodedFile]:
    """Embeddings of unit length of video files, in order, a row an interval; `options` as for `stream_images`."""
    on_their_way: deque[File] = deque()

    def paths() -> Iterator[Path]:
        for name in names:
            on_their_way.append(hash_file(root, stat_file(root, name) or File(name, 0, 0)))
            yield root / name

    for video in stream_videos(model, processor, paths(), sampling, **options):
        file = on_their_way.popleft()
        if video.error is not None:
            unknown = {"start": [None], "end": [None]}
            yield EncodedFile(file, torch.from_numpy(video.embedding)[None], video.error, unknown)
        else:
            spans = {"start": video.starts.tolist(), "end": video.ends.tolist()}
            yield EncodedFile(file, torch.from_numpy(video.intervals), None, spans)
