"""Embeddings of videos: the image tower's vectors of frames at regular times, averaged by interval and over all."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from .encoding import (
    check_choices,
    check_parts,
    evaluating,
    image_width,
    progress_bar,
    stream_images,
    warn_of_unreadable,
)
from .image_budget import ImageBudget
from .inputs import inputs_of
from .video_frames import Frame, Sampling, UnreadableVideoError, read_frames


@dataclass(frozen=True)
class EncodedVideo:
    """The vectors of a video.

    Args:
        embedding: (D,) float32 of the whole video; NaN where it cannot be read.
        intervals: (N, D) float32 of its intervals in order; none where it cannot be read.
        starts, ends: (N,) float64, their seconds since the first frame.
        error: why it cannot be read.
    """

    embedding: np.ndarray
    intervals: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    error: str | None = None


@dataclass
class Waiting:
    """A video some of whose frames are still being computed: the times of all that were read, vectors of the first."""

    seconds: list[list[float]] = field(default_factory=list)
    vectors: list[torch.Tensor] = field(default_factory=list)
    end: float = 0.0
    read: bool = False
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.read and len(self.vectors) == len(self.seconds)

    def add(self, frame: Frame) -> Image.Image:
        self.seconds.append(frame.seconds)
        self.end = frame.end
        return frame.image

    def encoded(self, interval: float | None, width: int, normalize: bool) -> EncodedVideo:
        """Each time that a frame is seen counts once: a picture that stands still weighs as long as it stands."""
        nothing = np.zeros(0)
        if self.error is not None:
            empty = np.zeros((0, width), np.float32)
            return EncodedVideo(np.full(width, np.nan, np.float32), empty, nothing, nothing, self.error)
        times = [(second, row) for row, seconds in enumerate(self.seconds) for second in seconds]
        places = torch.tensor([0 if interval is None else int(second / interval + 1e-9) for second, _ in times])
        rows = torch.stack(self.vectors).double()[torch.tensor([row for _, row in times])]
        sums = torch.zeros(int(places[-1]) + 1, width, dtype=torch.float64).index_add_(0, places, rows)
        means = torch.cat([sums / places.bincount()[:, None], rows.mean(0, keepdim=True)])
        means = (F.normalize(means, dim=1) if normalize else means).float().numpy()
        step = self.end if interval is None else interval
        starts = np.arange(len(sums)) * step
        return EncodedVideo(means[-1], means[:-1], starts, np.minimum(starts + step, self.end))


def stream_videos(
    model: nn.Module,
    processor: Any,
    videos: Iterable[Any],
    sampling: Sampling,
    *,
    normalize: bool = True,
    **options: Any,
) -> Iterator[EncodedVideo]:
    """Embeddings of videos in order; `options` are those of `stream_images`. The model is in eval mode.

    Frames of several videos share a batch.
    """
    waiting: deque[Waiting] = deque()

    def frames() -> Iterator[Image.Image]:
        for source in videos:
            video = Waiting()
            waiting.append(video)
            try:
                for frame in read_frames(source, sampling.frames_per_second):
                    yield video.add(frame)
            except UnreadableVideoError as error:
                video.error = str(error)
            video.read = True

    width = None
    for batch in stream_images(model, processor, frames(), normalize=True, **options):
        width = batch.embeds.shape[1]
        for vector in batch.embeds:
            while waiting[0].complete:
                yield waiting.popleft().encoded(sampling.interval, width, normalize)
            waiting[0].vectors.append(vector)
    for video in waiting:
        width = width or image_width(model, getattr(processor, "image_processor", processor))
        yield video.encoded(sampling.interval, width, normalize)


def encode_videos(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    videos: Any,
    *,
    column: str | None = None,
    frames_per_second: float = 1.0,
    interval: float | None = 10.0,
    batch_size: int = 32,
    max_num_patches: int | None = None,
    upscale: bool = True,
    batch_tokens: int | None = None,
    workers: int | None = None,
    normalize: bool = True,
    errors: str = "report",
    progress: bool | None = None,
) -> list[EncodedVideo]:
    """Embeddings of videos, comparable with those of images and texts.

    Frames are taken at regular times, by their timestamps, turned upright, and embedded as `encode_images` does. A
    vector is the mean of the unit vectors of the frames seen in its interval, or in the whole video, brought to unit
    length again. SigLIP knows single images: order and motion are not in it, nor is sound.

    Args:
        model, processor: as for `encode_images`.
        videos: one or many paths, bytes or open files, a folder of video files, or a table with a column of them.
        column: the videos' column, "video" by default.
        frames_per_second: how often a frame is taken, from the first one on.
        interval: seconds of one vector of `intervals`; None for one of the whole video.
        batch_size, max_num_patches, upscale, batch_tokens, workers: of the frames, as in `encode_images`.
        normalize: to unit length; without, the mean's own length says how alike the frames are, 1 if all are the same.
        errors: "report" gives an unreadable video NaN and its `error`, and names all of them in one warning; "raise"
            stops at the first.
        progress: show a bar; by default on terminals only.

    Returns:
        An `EncodedVideo` each, in order.

    Raises:
        ImportError: PyAV is missing.
        ValueError: no videos, settings that fit nothing, or with errors="raise" a video that cannot be read.
        TypeError: something that is neither a video nor a collection of videos.
    """
    check_choices(errors, "np")
    check_parts(model, processor, "image")
    sampling = Sampling(frames_per_second, interval)
    budget = ImageBudget(max_num_patches, upscale, batch_tokens)
    found = inputs_of(videos, column, "video")
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "budget": budget}
    results: list[EncodedVideo] = []
    with evaluating(model), progress_bar(found.count, "videos", progress) as bar:
        for video in stream_videos(model, processor, found.items, sampling, normalize=normalize, **options):
            if video.error is not None and errors == "raise":
                raise UnreadableVideoError(f"video {len(results)}: {video.error}")
            results.append(video)
            bar.update()
    if not results:
        raise ValueError("nothing to encode: there are no videos")
    failed = {place: video.error for place, video in enumerate(results) if video.error is not None}
    warn_of_unreadable(failed, len(results), "their vectors are NaN", "videos")
    return results
