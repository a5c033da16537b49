"""Vectors of videos against `encode_images` of the same frames, and what is no video."""

import io
import math
import sys
import wave

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    encode_images,
    encode_videos,
)
from modeling_siglip_ext.video_frames import Sampling, UnreadableVideoError, read_frames
from support.models import TINY_NAFLEX, TINY_TEXT, make_config, make_processor
from support.videos import SIZE, decoded, frames, turn, write_video


av = pytest.importorskip("av")
PICTURES = frames(9)
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


@pytest.fixture(scope="module")
def parts():
    return SiglipExtModel(make_config()).eval(), make_processor(["a"], 8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """4.5 seconds, a picture each half of one."""
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", PICTURES)


def mean(vectors: np.ndarray) -> np.ndarray:
    total = vectors.astype(np.float64).mean(axis=0)
    return total / np.linalg.norm(total)


def test_vectors_are_means_of_those_of_the_frames(parts, video):
    shown = decoded(video)
    assert np.abs(np.asarray(shown[4], int) - np.asarray(PICTURES[4], int)).mean() < 8
    vectors = encode_images(*parts, shown)
    (found,) = encode_videos(*parts, video, frames_per_second=2, interval=2, batch_size=4)
    assert found.error is None
    np.testing.assert_allclose(found.embedding, mean(vectors), atol=1e-6)
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 2, 4], [2, 4, 4.5])
    for own, first in zip(found.intervals, (0, 4, 8)):
        np.testing.assert_allclose(own, mean(vectors[first : first + 4]), atol=1e-6)
    (found,) = encode_videos(*parts, [video], frames_per_second=1, interval=None)
    np.testing.assert_allclose(found.embedding, mean(vectors[::2]), atol=1e-6)
    np.testing.assert_array_equal(found.intervals, found.embedding[None])
    (free,) = encode_videos(*parts, [video], interval=None, normalize=False)
    np.testing.assert_allclose(free.embedding, vectors[::2].mean(axis=0), atol=1e-6)


def test_a_frame_counts_as_long_as_it_is_shown(parts, tmp_path):
    """Recorded at a rate that varies: by number, the first second would be half of the video."""
    path = write_video(tmp_path / "varies.mkv", PICTURES[:5], [0, 300, 600, 900, 3400])
    times = [0, 500, 1000, 1500, 2000, 2500, 3000]
    taken = [0, 1, 3, 3, 3, 3, 3, 4]
    shown = decoded(path)
    seen = list(read_frames(path, 2))
    assert [[1000 * second for second in frame.seconds] for frame in seen] == [
        times[:1],
        times[1:2],
        times[2:],
        [3500],
    ]
    for frame, place in zip(seen, (0, 1, 3, 4)):
        assert frame.image.tobytes() == shown[place].tobytes()
    (found,) = encode_videos(*parts, path, frames_per_second=2, interval=1)
    vectors = encode_images(*parts, shown)
    np.testing.assert_allclose(found.embedding, mean(vectors[taken]), atol=1e-6)
    np.testing.assert_allclose(found.intervals[2], vectors[3], atol=1e-6)


# as EXIF has it, orientation and what PIL does with it
@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((1, 0, 0, 1), 1),
        ((-1, 0, 0, 1), 2),
        ((-1, 0, 0, -1), 3),
        ((1, 0, 0, -1), 4),
        ((0, 1, 1, 0), 5),
        ((0, 1, -1, 0), 6),
        ((0, -1, -1, 0), 7),
        ((0, -1, 1, 0), 8),
    ],
)
def test_a_phone_held_upright(matrix, orientation, video, tmp_path):
    """The matrix in an MP4's header against PIL's own of the same orientation in EXIF."""
    turned = turn(video, matrix, tmp_path / "turned.mp4")
    found = [frame.image for frame in read_frames(turned, 2)]
    assert len(found) == len(PICTURES)
    for image, plain in zip(found, decoded(video)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain.info["exif"] = exif.tobytes()
        expected = ImageOps.exif_transpose(plain)
        assert image.size == expected.size == (SIZE if orientation < 5 else SIZE[::-1])
        assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("mpeg4", "mov")])
def test_kinds_of_files(codec, suffix, tmp_path):
    path = write_video(tmp_path / f"a.{suffix}", PICTURES, codec=codec)
    found = list(read_frames(path, 1))
    assert [frame.seconds for frame in found] == [[0], [1], [2], [3], [4]]
    for frame, picture in zip(found, PICTURES[::2]):
        assert np.abs(np.asarray(frame.image, int) - np.asarray(picture, int)).mean() < 12


def bad_files(folder, video) -> dict[str, str]:
    """Paths of what is no video, with a word of the reason."""
    content = video.read_bytes()
    with wave.open(str(folder / "sound.mp4"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    files = {"empty": b"", "junk": b"junk" * 1000, "cut": content[: len(content) // 2], "text": b"hello\n" * 50}
    for name, data in files.items():
        (folder / f"{name}.mp4").write_bytes(data)
    (folder / "list.mp4").write_text(PLAYLIST)
    reasons = {f"{name}.mp4": "cannot be read as a video" for name in ("empty", "junk", "cut", "text", "list")}
    return {**reasons, "sound.mp4": "has no pictures", "none.mp4": "No such file"}


def test_what_is_no_video_costs_only_itself(parts, video, tmp_path, caplog):
    bad = bad_files(tmp_path, video)
    paths = [path for name in bad for path in (str(tmp_path / name), video)]
    found = encode_videos(*parts, paths, interval=2)
    good = encode_videos(*parts, [video], interval=2)[0]
    for name, broken, whole in zip(bad, found[::2], found[1::2]):
        assert bad[name] in broken.error
        assert name in broken.error
        assert np.isnan(broken.embedding).all()
        assert broken.embedding.shape == good.embedding.shape
        assert broken.intervals.shape == (0, 32)
        np.testing.assert_allclose(whole.embedding, good.embedding, atol=1e-6)
        np.testing.assert_allclose(whole.intervals, good.intervals, atol=1e-6)
    assert f"{len(bad)} of {2 * len(bad)} videos cannot be read" in caplog.text
    with pytest.raises(UnreadableVideoError, match=r"video 1: .*empty\.mp4"):
        encode_videos(*parts, [video, tmp_path / "empty.mp4"], errors="raise")
    for other in (3, None):
        with pytest.raises(UnreadableVideoError, match="is not a video: give a path"):
            next(read_frames(other, 1))


def test_a_file_that_was_cut_is_no_shorter_video(video, tmp_path):
    """Its header stands in front and says more than there is, as of a download that was broken off."""
    path = tmp_path / "front.mp4"
    with av.open(str(video)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    content = path.read_bytes()
    assert len(list(read_frames(path, 2))) == 9
    for share in (0.6, 0.7, 0.8, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UnreadableVideoError):
            list(read_frames(path, 2))


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4"])
def test_a_video_whose_time_begins_late_is_whole(suffix, tmp_path):
    """As what was cut out of a longer one has it; Matroska's length then counts what was never there."""
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    path = write_video(tmp_path / f"late.{suffix}", PICTURES[:4], [5000, 5500, 6000, 6500], codec)
    assert [frame.seconds for frame in read_frames(path, 2)] == [[0], [0.5], [1], [1.5]]
    if suffix != "mp4":
        content = path.read_bytes()
        for share in (0.6, 0.7, 0.8):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(UnreadableVideoError, match="was cut"):
                list(read_frames(path, 2))


def test_every_kind_of_source(parts, video, tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.MP4", "below/a.mp4", "._c.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(video.read_bytes())
    content = video.read_bytes()
    expected = encode_videos(*parts, str(video))[0].embedding
    with open(video, "rb") as opened:
        sources = [
            [content],
            content,
            io.BytesIO(content),
            opened,
            [{"bytes": content, "path": None}],
            {"video": [video]},
            tmp_path,
        ]
        for source in sources:
            found = encode_videos(*parts, source)
            assert len(found) == (2 if source == tmp_path else 1)
            for one in found:
                np.testing.assert_allclose(one.embedding, expected, atol=1e-6)
    with pytest.raises(ValueError, match="nothing to encode: there are no videos"):
        encode_videos(*parts, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no video files"):
        encode_videos(*parts, tmp_path / "empty")


def test_naflex_frames_keep_their_shape(video):
    torch.manual_seed(0)
    model = SiglipExtModel(SiglipExtConfig(text_config=TINY_TEXT, vision_config=TINY_NAFLEX)).eval()
    processor = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    vectors = encode_images(model, processor, decoded(video)[::2], max_num_patches=9)
    (found,) = encode_videos(model, processor, video, max_num_patches=9, batch_tokens=40)
    np.testing.assert_allclose(found.embedding, mean(vectors), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames_per_second": 0}, "frames_per_second=0 must be above 0"),
        ({"frames_per_second": math.nan}, "frames_per_second=nan must be above 0"),
        ({"interval": -1.0}, "interval=-1.0 must be above 0"),
        ({"interval": 0.5}, "an interval of 0.5 s may hold no frame at 1.0 frames per second"),
    ],
)
def test_settings_that_fit_nothing(settings, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Sampling(**settings)


def test_timestamps_that_jump_far_are_damage(tmp_path):
    path = write_video(tmp_path / "jump.mkv", PICTURES[:3], [0, 1000, 90_000_000])
    with pytest.raises(UnreadableVideoError, match="jump from 1 to 90000 seconds"):
        list(read_frames(path, 1))


def test_a_frame_too_large_is_refused_as_an_image_is(video, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableVideoError, match="a frame of 64 x 48 pixels is larger than PIL allows"):
        list(read_frames(video, 1))


def test_without_pyav_the_remedy_is_named(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'siglip-ext\[video\]'"):
        list(read_frames(video, 1))
