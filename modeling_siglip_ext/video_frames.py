"""The frames of a video that are shown at regular times, upright, as a player would show them.

Frames are taken by their timestamps and never counted: phones and screens record at rates that vary. What a phone says
of how it was held is followed. Only local files are opened, also by what a file refers to.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .images import describe
from .video_files import missing_bytes


LONGEST_PAUSE = 3600.0  # seconds between two frames: beyond, their timestamps are taken for damaged
LEAST_SHOWN = 0.9  # of the length that a file states, or it was cut
# signs of (a, b, c, d) in the display matrix: x' = a x + c y, y' = b x + d y
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


class UnreadableVideoError(ValueError):
    """An input is no video, or one that is damaged, cut or empty; the message says which and why."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are seen, and which of them make one vector.

    Args:
        frames_per_second: how often a frame is taken, from the first one on.
        interval: seconds of a vector; None for the whole video.

    Raises:
        ValueError: a number that is not above 0, or an interval in which no frame may be taken.
    """

    frames_per_second: float = 1.0
    interval: float | None = 10.0

    def __post_init__(self) -> None:
        for name, value in (("frames_per_second", self.frames_per_second), ("interval", self.interval)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be above 0")
        if self.interval is not None and self.interval * self.frames_per_second < 1:
            raise ValueError(
                f"an interval of {self.interval} s may hold no frame at {self.frames_per_second} frames per second"
            )


@dataclass(frozen=True)
class Frame:
    """A frame (RGB, upright), the seconds since the first at which it is seen, and when the next takes its place."""

    image: Image.Image
    seconds: list[float]
    end: float


def pyav() -> Any:
    """Raises ImportError with the remedy where PyAV is missing."""
    try:
        return import_module("av")
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'siglip-ext[video]'") from error


def read_frames(source: Any, frames_per_second: float) -> Iterator[Frame]:
    """The frames that are shown at 0, 1/n, 2/n, ... seconds after the first, each once with all its times.

    Args:
        source: a path, bytes or an open file.
        frames_per_second: n.

    Raises:
        ImportError: PyAV is missing.
        UnreadableVideoError: no video, or a damaged one; also when its first frames were given.
    """
    av, file = pyav(), source
    if isinstance(source, Mapping):  # a row of an undecoded column of `datasets`
        file = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(file, (bytes, bytearray, memoryview)):
        file = BytesIO(file)
    if not isinstance(file, (str, os.PathLike)) and not hasattr(file, "read"):
        raise UnreadableVideoError(f"{describe(source)} is not a video: give a path, bytes or an open file")
    try:
        count, shown_until, longest = 0, 0.0, 0.0
        if missing := missing_bytes(file):
            raise UnreadableVideoError(f"{describe(source)} was cut: {missing:,} bytes of it are missing")
        with av.open(file, options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if not container.streams.video:
                raise UnreadableVideoError(f"{describe(source)} has no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame, end in timed(container.decode(stream), stream):
                seconds = []
                while count / frames_per_second < end - 1e-9:
                    seconds.append(count / frames_per_second)
                    count += 1
                longest = max(longest, end - shown_until)
                shown_until = end
                if seconds:
                    yield Frame(upright(frame), seconds, end)
            stated = stated_length(container, stream)
            if shown_until + longest < LEAST_SHOWN * stated:  # how long the last frame is shown is often not said
                raise UnreadableVideoError(f"{describe(source)} ends after {shown_until:.1f} of {stated:.1f} seconds")
        if not count:
            raise UnreadableVideoError(f"{describe(source)} has no frames")
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f"{describe(source)} cannot be read as a video: {error.strerror}") from error
    except OSError as error:
        raise UnreadableVideoError(f"{describe(source)} cannot be read: {error}") from error


def stated_length(container: Any, stream: Any) -> float:
    """Seconds that a file says its pictures last; 0 where it says nothing of them.

    Matroska says it of the whole file, sound and all, and counts from 0, wherever the first frame stands; of it the
    bytes were counted.
    """
    return 0.0 if "matroska" in container.format.name else float((stream.duration or 0) * stream.time_base)


def timed(frames: Iterator[Any], stream: Any) -> Iterator[tuple[Any, float]]:
    """Each frame with the seconds since the first until which it is shown.

    Raises:
        UnreadableVideoError: a pause of more than `LONGEST_PAUSE`.
    """
    usual = 1 / float(stream.average_rate or stream.base_rate or 25)
    first, before, start = None, None, 0.0
    for frame in frames:
        if frame.time is None:  # a stream without timestamps
            now = 0.0 if before is None else start + usual
        else:
            first = frame.time if first is None else first
            now = max(frame.time - first, start)
        if now - start > LONGEST_PAUSE:
            raise UnreadableVideoError(f"the timestamps of a video jump from {start:.0f} to {now:.0f} seconds")
        if before is not None:
            yield before, now
        before, start = frame, now
    if before is not None:
        own = float(before.duration * before.time_base) if before.duration else usual
        yield before, start + min(own, LONGEST_PAUSE)


def upright(frame: Any) -> Image.Image:
    """A frame as RGB, turned as its file says.

    Raises:
        UnreadableVideoError: more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows, as for images.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and frame.width * frame.height > 2 * most:
        raise UnreadableVideoError(f"a frame of {frame.width} x {frame.height} pixels is larger than PIL allows")
    image = frame.to_image()
    try:
        matrix = np.frombuffer(memoryview(frame.side_data["DISPLAYMATRIX"]), np.int32)
    except KeyError:
        return image
    turn = UPRIGHT.get(tuple(np.sign(matrix[[0, 1, 3, 4]]).tolist()))
    return image if turn is None else image.transpose(turn)
