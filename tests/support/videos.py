"""Small videos made on the spot, and frames of them read by hand."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (64, 48)


def frames(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Pictures that a coder hardly changes, each of its own, no two sides of one alike."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, 3, 4, 3), dtype=np.uint8)
    return [Image.fromarray(block).resize(size, Image.Resampling.BICUBIC) for block in blocks]


def write_video(
    path: Path, pictures: list[Image.Image], milliseconds: list[int] | None = None, codec: str = "libx264"
) -> Path:
    """A video whose pictures are shown from these times on; every half second unless given."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate([*pictures, None]):
            frame = None
            if picture is not None:
                frame = av.VideoFrame.from_image(picture)
                frame.pts = 500 * number if milliseconds is None else milliseconds[number]
                frame.time_base = Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = 500
                container.mux(packet)
    return path


def decoded(path: Path) -> list[Image.Image]:
    """All frames as PIL images, as PyAV gives them."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def turn(path: Path, matrix: tuple[int, int, int, int], out: Path) -> Path:
    """A copy of an MP4 whose track header says that it is shown through (a, b, c, d)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4
    place += 4 + (32 if content[place] else 20) + 16  # version and flags, times and lengths, layers
    a, b, c, d = (65536 * one for one in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    out.write_bytes(content)
    return out
