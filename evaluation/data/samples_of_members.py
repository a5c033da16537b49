"""Members of a tar file in their order to samples: an image, its captions and fields.

A sample is the files of one name: `000123.jpg`, `000123.txt` (a caption a line), `000123.json` (fields). A name ends
at its last dot, so `img.0.jpg` and `img.0.txt` are a sample. WebDataset ends it at the first: `000123.seg.png` beside
`000123.jpg` is a further part of that sample, and no image without captions. Image and text may stand apart: what is
not complete waits for the rest, up to `HELD_BYTES`.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from modeling_siglip_ext.images import image_suffixes

from .columns import CAPTION_COLUMNS
from .text_files import caption_lines, decoded


HELD_BYTES = 512 * 2**20
# Names of one sample as WebDataset has it.
MOST_PARTS = 32
# The field of a row that is no sample: why.
DROPPED = "__dropped__"
CAPTION_SUFFIXES = (".txt", ".caption", ".captions", ".text")


def read_captions(row: dict[str, Any], content: bytes) -> None:
    lines = caption_lines(decoded(content))
    row["caption"] = row.get("caption", []) + lines


def read_fields(row: dict[str, Any], content: bytes) -> None:
    fields = json.loads(decoded(content))
    if not isinstance(fields, dict):
        raise ValueError("holds no mapping")
    # an image is a member: a name in its place would open whatever file or address the shard's author chose
    row.update({name: value for name, value in fields.items() if name not in ("image", DROPPED, *row)})


def read_class(row: dict[str, Any], content: bytes) -> None:
    text = decoded(content).strip()
    row["cls"] = int(text) if text.isdecimal() else text


def read_labels(row: dict[str, Any], content: bytes) -> None:
    row["npy"] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False).tolist()


# In this order: captions in a text go before those in JSON.
PARTS: dict[str, Callable[[dict[str, Any], bytes], None]] = {
    **dict.fromkeys(CAPTION_SUFFIXES, read_captions),
    ".json": read_fields,
    ".cls": read_class,
    ".npy": read_labels,
}


def is_part(path: PurePosixPath) -> bool:
    """Whether a member is of a sample; others, as a README, are passed over."""
    suffix = path.suffix.lower()
    return suffix in PARTS or suffix in image_suffixes()


@dataclass
class Sample:
    """The members of one name so far, by suffix.

    Args:
        key: folder and name up to the last dot, and `first` up to the first one.
    """

    key: str
    first: str
    image: bytes | None = None
    image_name: str = ""
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    apart: bool = False
    """Whether its members do not follow each other: then a text may still come after JSON."""

    @property
    def complete(self) -> bool:
        text = any(suffix in self.parts for suffix in CAPTION_SUFFIXES)
        return self.image is not None and (text or (bool(self.parts) and not self.apart))

    @property
    def named_dotted(self) -> bool:
        return self.key != self.first

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        wrong = []
        for suffix, read in PARTS.items():
            if suffix in self.parts:
                try:
                    read(row, self.parts[suffix])
                except (ValueError, EOFError, RecursionError, MemoryError) as error:
                    wrong.append(f"its {suffix} {error}")
        if "caption" not in row:
            usual = next((name for name in CAPTION_COLUMNS if name in row), None)
            if usual is not None:
                row["caption"] = row[usual]
            elif wrong:
                return {DROPPED: "; ".join(wrong)}
        return row if self.image is None else {"image": self.image, **row}


class Samples:
    """Groups members into samples; `add` and `rest` give (key, row) of those that are finished."""

    def __init__(self) -> None:
        self.current: dict[str, Sample] = {}
        """Samples of one name up to the first dot, which members still come for."""
        self.waiting: dict[str, Sample] = {}
        self.held = 0
        self.given: set[str] = set()
        self.apart: set[str] = set()
        """Of `given` those that were not complete."""
        self.repeated: set[str] = set()

    def add(self, path: PurePosixPath, content: bytes) -> Iterator[tuple[str, dict]]:
        """Take in a member for which `is_part` holds."""
        stem, suffix = path.with_suffix(""), path.suffix.lower()
        if suffix in PARTS and stem.suffix.lower() in image_suffixes():  # cat.jpg.txt
            stem = stem.with_suffix("")
        key, first = str(stem), str(path.parent / path.name.partition(".")[0])
        if key not in self.current and not self._is_beside(key, first):
            yield from self._close()
        if key in self.apart:
            yield key, {DROPPED: f"{path.name} is more than {HELD_BYTES >> 20} MiB away from the rest of its sample"}
            return
        if key in self.given:
            yield from self._again(key, path.name, suffix, "comes again after its sample was read")
            return
        sample = self.current.get(key) or self._woken(key) or Sample(key, first)
        self.current[key] = sample
        if suffix in PARTS:
            if suffix in sample.parts:
                yield from self._again(key, path.name, suffix, "comes more than once")
                return
            sample.parts[suffix] = content
        elif sample.image is not None:
            same = path.name == sample.image_name
            yield from self._again(key, path.name, suffix, "comes more than once" if same else "is a second image")
            return
        else:
            sample.image, sample.image_name = content, path.name
        sample.size += len(content)

    def rest(self) -> Iterator[tuple[str, dict]]:
        """What is left at the end of the file."""
        yield from self._close()
        yield from self._let_go(0)

    def _is_beside(self, key: str, first: str) -> bool:
        """Whether a name may belong to the sample at hand, as WebDataset has it."""
        beside = key == first or first in self.current
        same = any(sample.first == first for sample in self.current.values())
        return beside and same and len(self.current) < MOST_PARTS

    def _woken(self, key: str) -> Sample | None:
        sample = self.waiting.pop(key, None)
        if sample is not None:
            self.held -= sample.size
            sample.apart = True
        return sample

    def _again(self, key: str, name: str, suffix: str, what: str) -> Iterator[tuple[str, dict]]:
        """A sample that cannot be told from another of its name; its image and its texts are dropped as one."""
        if suffix not in PARTS or key not in self.repeated:
            self.repeated.add(key)
            yield key, {DROPPED: f"{name} {what}: give every sample a name of its own"}

    def _close(self) -> Iterator[tuple[str, dict]]:
        for sample in self.current.values():
            if sample.complete:
                self.given.add(sample.key)
                yield sample.key, sample.row()
            elif not self._is_further_part(sample):
                self.waiting[sample.key] = sample
                self.held += sample.size
        self.current = {}
        yield from self._let_go(HELD_BYTES)

    def _let_go(self, limit: int) -> Iterator[tuple[str, dict]]:
        """Give up waiting for the rest of the oldest samples."""
        while self.waiting and (self.held > limit or not limit):
            sample = self.waiting.pop(next(iter(self.waiting)))
            self.held -= sample.size
            if not self._is_further_part(sample):
                self.given.add(sample.key)
                if sample.image is None or not sample.parts:
                    self.apart.add(sample.key)
                yield sample.key, sample.row()

    def _is_further_part(self, sample: Sample) -> bool:
        """Whether `000123.seg.png` stands beside a sample `000123`."""
        return sample.named_dotted and any(sample.first in group for group in (self.current, self.waiting, self.given))
