"""Images of every mode and from every source become upright RGB, as PIL users expect; the rest is named."""

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image as stock_load_image

from modeling_siglip_ext.images import UnreadableImageError, load_image


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def png() -> bytes:
    return encoded(Image.fromarray(PIXELS))


def test_every_source_gives_the_same_pixels(png, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png)
    text = base64.b64encode(png).decode()
    sources = [
        path,
        str(path),
        png,
        bytearray(png),
        io.BytesIO(png),
        Image.open(path),
        text,
        f"data:image/png;base64,{text}",
        base64.encodebytes(png).decode(),
        base64.encodebytes(png).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{base64.encodebytes(png).decode()}",
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        torch.from_numpy(PIXELS),
        PIXELS.astype(np.int64),
        PIXELS / np.float32(255),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        {"bytes": png, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), PIXELS), type(source)


def test_urls_and_their_errors(png):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/image.png" else 404)
            self.end_headers()
            self.wfile.write(png)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert np.array_equal(np.asarray(load_image(f"{address}/image.png", timeout=30)), PIXELS)
        with pytest.raises(UnreadableImageError, match=r"missing\.png answers with status 404"):
            load_image(f"{address}/missing.png", timeout=30)
    finally:
        server.shutdown()
        server.server_close()
    for unreachable in (f"{address}/image.png", "http://", "http://[half/an/address"):
        with pytest.raises(UnreadableImageError, match="cannot be read"):
            load_image(unreachable, timeout=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_are_converted_as_pil_does(mode):
    image = Image.fromarray(PIXELS).convert("L" if mode in ("1", "LA", "PA") else "RGB")
    image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image.convert("RGB")))
    if mode not in ("HSV", "LAB"):
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(stock_load_image(image)))


def test_a_palette_with_transparency_survives_a_png():
    palette = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    found = load_image(encoded(palette, transparency=0))
    assert np.array_equal(np.asarray(found), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled(dtype):
    gray = PIXELS[..., 0]
    deep = Image.fromarray(gray.astype(dtype) * 257)
    assert np.array_equal(np.asarray(load_image(deep))[..., 0], gray)
    if dtype == np.uint16:
        assert np.array_equal(np.asarray(load_image(encoded(deep)))[..., 1], gray)
        assert np.array_equal(np.asarray(load_image(PIXELS.astype(np.uint16) * 257)), PIXELS)


@pytest.mark.parametrize("most", [1, 255])
def test_floating_point_files_go_up_to_one_or_to_255(most):
    gray = PIXELS[..., 0]
    values = Image.fromarray((gray / 255 * most).astype(np.float32))
    assert values.mode == "F"
    for source in (values, encoded(values, "TIFF")):
        assert np.array_equal(np.asarray(load_image(source))[..., 0], gray)


@pytest.mark.parametrize("most", [1, 255])
def test_a_floating_point_image_that_was_resized_is_one(most):
    """Sharp filters go beyond the extremes."""
    steps = Image.fromarray(np.array([[0, 0, most, most]] * 4, np.float32))
    values = np.asarray(steps.resize((16, 16), Image.Resampling.LANCZOS))
    assert values.min() < 0
    assert values.max() > most
    found = np.asarray(load_image(Image.fromarray(values)))[..., 0]
    assert np.abs(found - values.clip(0, most) * (255 / most)).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    found = load_image(data)
    assert np.array_equal(np.asarray(found), np.asarray(stock_load_image(Image.open(io.BytesIO(data)))))
    assert (found.size == (9, 6)) == (orientation <= 4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        load_image(png)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"not an image at all", "19 bytes is not an image that PIL knows"),
        (b"", "0 bytes is not an image"),
        ("no/such/file.jpg", r"'no/such/file\.jpg' is neither a file, nor a URL"),
        ("data:image/png;base64,AAAA", "neither a file"),
        (np.zeros((3, 4, 5)), r"shape \(3, 4, 5\)|shape \(4, 5, 3\)"),
        (np.zeros((0, 4, 3)), "shape"),
        (np.full((4, 4, 3), 2.0), "up to 2.0"),
        (np.full((4, 4), -1), "not negative"),
        (np.full((4, 4), np.nan), "finite"),
        (np.full((4, 4), 70_000), "more than 16 bits"),
        (Image.new("F", (4, 4), 1000.0), "to 1000.0; they must lie within 0 and 255"),
        (Image.new("F", (4, 4), -1.0), "within 0 and 1"),
        (Image.new("F", (4, 4), np.nan), "finite"),
        ({"image": PIXELS, "caption": ""}, "column=..."),
        (17, "the given int is not an image"),
        (None, "the given NoneType is not an image"),
        ({"bytes": None, "path": None}, "the given dict is not an image"),
    ],
)
def test_what_is_no_image_is_named(source, message):
    if isinstance(source, np.ndarray) and source.shape == (3, 4, 5):
        load_image(source)  # (C, H, W)
        source = source[:2]
        message = r"shape \(2, 4, 5\)"
    with pytest.raises(UnreadableImageError, match=message):
        load_image(source)


def test_broken_files_are_named(png, tmp_path):
    jpeg = encoded(Image.fromarray(PIXELS.repeat(40, 0).repeat(40, 1)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg.*cannot be read"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        load_image(png[: len(png) // 2])
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        load_image(tmp_path)
    blp = bytearray(encoded(Image.fromarray(PIXELS).convert("P"), "BLP"))
    blp[4:8] = b"\xff" * 4  # a compression that does not exist: PIL's decoder raises a RuntimeError
    with pytest.raises(UnreadableImageError, match=r"\d+ bytes cannot be read: BLPFormatError"):
        load_image({"bytes": bytes(blp), "path": None})
