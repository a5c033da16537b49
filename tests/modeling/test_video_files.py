"""Files of pictures with sound, whole and cut: that a cut one is shorter, its pictures alone do not tell."""

import io

import numpy as np
import pytest

from modeling_siglip_ext.video_files import missing_bytes, stated_end
from modeling_siglip_ext.video_frames import UnreadableVideoError, read_frames
from support.videos import SIZE, frames


av = pytest.importorskip("av")
PICTURES = frames(9)
KINDS = {"avi": ("mpeg4", "pcm_s16le"), "mkv": ("mpeg4", "pcm_s16le"), "webm": ("libvpx-vp9", "libopus")}
SOUNDS = 48_000


def with_sound(path, codec: str, sound: str, **options: str) -> bytes:
    """The pictures, half a second each, and silence of the same length."""
    with av.open(str(path), "w", options=options) as out:
        pictures, silence = out.add_stream(codec, rate=2), out.add_stream(sound, rate=SOUNDS, layout="mono")
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        for number, picture in enumerate(PICTURES):
            frame = av.VideoFrame.from_image(picture)
            frame.pts = number
            out.mux(pictures.encode(frame))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, SOUNDS // 2), np.int16), "s16", "mono")
            samples.sample_rate, samples.pts = SOUNDS, number * SOUNDS // 2
            out.mux(silence.encode(samples))
        for stream in (pictures, silence):
            out.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_lacks_as_many_bytes_as_were_cut(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    content = with_sound(path, *KINDS[kind])
    assert missing_bytes(path) == 0
    assert len(list(read_frames(path, 2))) == len(PICTURES)
    for share in (0.2, 0.5, 0.8, 0.95):
        cut = content[: int(share * len(content))]
        path.write_bytes(cut)
        lacking = len(content) - len(cut) - (8 if kind == "avi" else 0)  # some writers of AVI count its first bytes
        assert missing_bytes(path) == missing_bytes(str(path)) == lacking
        opened = io.BytesIO(cut)
        opened.seek(3)
        assert (missing_bytes(opened), opened.tell()) == (lacking, 3)
        for source in (path, cut):
            with pytest.raises(UnreadableVideoError, match="bytes of it are missing"):
                list(read_frames(source, 2))


def test_of_what_was_written_live_nothing_is_known(tmp_path):
    path = tmp_path / "live.webm"
    content = with_sound(path, *KINDS["webm"], live="1")
    assert stated_end(content) is None
    assert len(list(read_frames(path, 2))) == len(PICTURES)


@pytest.mark.parametrize(
    "head",
    [b"", b"RIFF", b"RIFF\0\0\0\0AVI ", b"RIFF\xff\xff\xff\xffAVI ", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\0\0"],
)
def test_of_what_is_too_short_or_damaged_nothing_is_known(head):
    assert stated_end(head) is None
    assert missing_bytes(io.BytesIO(head)) == 0


def test_a_source_that_cannot_seek_is_left_alone():
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    class Plain:
        read = seek = tell = None

    assert missing_bytes(Pipe(b"RIFF\x99\0\0\0AVI ")) == missing_bytes(Plain()) == 0
