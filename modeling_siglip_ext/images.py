"""One image from whatever people have at hand - path, URL, bytes, array, PIL - to upright 8-bit RGB.

What PIL's `convert("RGB")` would spoil is mended: 16-bit pixels are scaled and not cut off at 255. Everything else is
as PIL users expect: transparency is dropped, EXIF rotation applied.
"""

import base64
import binascii
import importlib
import os
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImageError(ValueError):
    """An input is no image, or one that is broken, too large or out of reach; the message says which and why."""


def client_errors() -> tuple[type[Exception], ...]:
    """What the client behind `get_session` raises: httpx or its successor, by huggingface_hub's version."""
    kinds = (kind for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith("httpx"))
    base = next(kind for kind in kinds if issubclass(kind, Exception))
    return base, importlib.import_module(base.__module__.partition(".")[0]).InvalidURL


# what PIL's decoders raise for broken files, and what reading from disk and from the net does
BROKEN = (SyntaxError, ValueError, EOFError, RuntimeError, TypeError, LookupError, ArithmeticError)
UNREADABLE = (*BROKEN, struct.error, zlib.error, OSError, MemoryError, *client_errors())

# of an image in an array, at one end of its shape
CHANNELS = (1, 3, 4)

# formats that PIL recognizes, but cannot decode by itself
ONLY_RECOGNIZED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the formats that PIL reads, in lower case with their dot."""
    known = Image.registered_extensions()  # first: this is what makes PIL load its formats
    readable = Image.OPEN.keys() - ONLY_RECOGNIZED
    return frozenset(suffix for suffix, kind in known.items() if kind in readable)


def is_image_file(path: str | os.PathLike) -> bool:
    """Whether a file's name says that it is an image; not one that a Mac put beside it (`._im.jpg`)."""
    name = os.path.basename(os.fspath(path))
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in image_suffixes()


def load_image(source: Any, timeout: float | None = 30.0) -> Image.Image:
    """An upright RGB image.

    Args:
        source: path, URL, `data:` URI or base64 text (with or without line breaks), bytes, open file, PIL image, an
            array or tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels - integers up to 255 (16-bit ones
            up to 65535), or floats from 0 to 1 - or the mapping with "bytes" and "path" of an undecoded column of
            `datasets`.
        timeout: seconds to wait for a URL; None waits for ever.

    Raises:
        UnreadableImageError: for everything that cannot be read as an image, with the reason.
    """
    try:
        opened = open_image(source, timeout)
        if opened is source:
            return to_rgb(opened)
        with opened:  # a file that PIL opened is closed, whatever is wrong with it
            return to_rgb(opened)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{describe(source)} has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows, as a decompression bomb "
            f"would: {error}. Raise that limit if you trust the file"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{describe(source)} is not an image that PIL knows") from error
    except UNREADABLE as error:
        raise UnreadableImageError(f"{describe(source)} cannot be read: {type(error).__name__}: {error}") from error


def is_image_mapping(source: Any) -> bool:
    """Whether it is a row of an undecoded column of `datasets`, with "bytes" or "path"."""
    if not isinstance(source, Mapping):
        return False
    data, path = source.get("bytes"), source.get("path")
    return isinstance(data, (bytes, bytearray, memoryview)) or isinstance(path, (str, os.PathLike))


def open_image(source: Any, timeout: float | None) -> Image.Image:
    """A PIL image of any mode, perhaps not decoded yet."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image.open(BytesIO(source))
    if is_image_mapping(source):
        return open_image(source["path"] if source.get("bytes") is None else source["bytes"], timeout)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()  # numpy knows no bfloat16
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        response = get_session().get(source, timeout=timeout, follow_redirects=True)
        if response.status_code >= 400:
            raise UnreadableImageError(f"{source} answers with status {response.status_code}")
        return Image.open(BytesIO(response.content))
    if isinstance(source, str) and not os.path.exists(source):
        return from_base64(source)
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return Image.open(source)
    row = " (of a dataset's rows name the image's column: column=...)" if isinstance(source, Mapping) else ""
    raise UnreadableImageError(
        f"{describe(source)} is not an image: give a path, URL, bytes, PIL image, array or tensor{row}"
    )


def from_base64(text: str) -> Image.Image:
    """Line breaks and whatever else is no base64 is passed over, as in transformers' `load_image`."""
    encoded = text.split(",", 1)[1] if text[:5].lower() == "data:" and "," in text else text
    try:
        return Image.open(BytesIO(base64.b64decode(encoded)))
    except (binascii.Error, ValueError, UnidentifiedImageError) as error:
        raise UnreadableImageError(f"{describe(text)} is neither a file, nor a URL, nor an image in base64") from error


def from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise UnreadableImageError(f"an array of shape {array.shape} is not an image (H, W), (H, W, C) or (C, H, W)")
    return Image.fromarray(eight_bits(array))


def eight_bits(array: np.ndarray) -> np.ndarray:
    """Pixel values as uint8: floats from 0 to 1, or integers of 8 or 16 bits."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if not np.isfinite([low, high]).all() or low < 0:
        raise UnreadableImageError(f"pixel values from {low} to {high}; they must be finite and not negative")
    if array.dtype.kind == "f":
        if high > 1:
            raise UnreadableImageError(f"floating-point pixels up to {high}; they must lie within 0 and 1")
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype == np.uint16 or high > 255:
        if high > 65535:
            raise UnreadableImageError(f"integer pixels up to {high}; more than 16 bits are not an image")
        return np.rint(array / 257).astype(np.uint8)
    return array.astype(np.uint8)


def from_zero_to_one(array: np.ndarray) -> np.ndarray:
    """Floating-point values of a PIL image, which go from 0 to 1 or, as PIL has them from other modes, up to 255.

    Resizing with a sharp filter makes a few that lie a little beyond.
    """
    low, high = array.min(), array.max()
    most = 1 if high <= 1.25 else 255
    if low < -most / 4 or high > most * 5 / 4:
        raise UnreadableImageError(f"floating-point pixels from {low} to {high}; they must lie within 0 and {most}")
    return array.clip(0, most) / most


def to_rgb(image: Image.Image) -> Image.Image:
    if not all(image.size):
        raise UnreadableImageError(f"an image of {image.size[0]} x {image.size[1]} pixels has nothing to see")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; "I" holds them as 32-bit integers
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.mode == "F":
        image = Image.fromarray(eight_bits(from_zero_to_one(np.asarray(image))))
    return image if image.mode == "RGB" else image.convert("RGB")


def describe(source: Any) -> str:
    """The input in a few words, for messages."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return repr(text if len(text) <= 120 else f"{text[:60]}...")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, Mapping) and (source.get("path") or source.get("bytes") is not None):
        return describe(source.get("path") or source["bytes"])
    return f"the given {type(source).__name__}"
