"""What the name of a data set stands for: which files, here or behind URLs, and of which kind they are."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from os import PathLike
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec

from modeling_siglip_ext.images import is_image_file


SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".tar": "tar",
    ".tgz": "tar",
    ".tbz2": "tar",
    ".txz": "tar",
}
COMPRESSIONS = (".gz", ".bz2", ".xz")
COMPRESSED_KINDS = ("csv", "json", "tar")
KNOWN = (
    f"{', '.join(SUFFIXES)} files (text and tar also with {', '.join(COMPRESSIONS)}), folders of them, folders of "
    "images, what `save_to_disk` of `datasets` wrote, and names on the Hub"
)
MOST_FILES = 1_000_000
NAMED = 5
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def is_url(source: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def place_of(source: str) -> str:
    """A source without the query of a URL, which may hold a signature."""
    return urlsplit(source)._replace(query="", fragment="").geturl() if source.startswith("http") else source


def short_name(source: str) -> str:
    """The last part of a source, for people."""
    return PurePosixPath(place_of(source).rstrip("/")).name


def kind_of(source: str | PathLike) -> str | None:
    """The kind of file that a name stands for by its suffix, in any case: a value of `SUFFIXES`, None for others."""
    name = short_name(str(source)).lower()
    packed = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), None)
    if packed is None:
        return SUFFIXES.get(PurePosixPath(name).suffix)
    kind = SUFFIXES.get(PurePosixPath(name.removesuffix(packed)).suffix)
    return kind if kind in COMPRESSED_KINDS else None


def is_hidden(name: str) -> bool:
    """Whether a path is what systems put beside people's files: `._im.jpg` and `__MACOSX` of a Mac, `.DS_Store`."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


def names_many(source: str) -> bool:
    """Whether a source is a pattern or a list of several."""
    if Path(source).exists():
        return False
    return "::" in source or _BRACES.search(place_of(source)) is not None or has_wildcard(source)


def has_wildcard(source: str) -> bool:
    # in a web address a question mark begins the query
    return "*" in place_of(source) or ("?" in source and not source.startswith("http"))


def expand(urls: str | Sequence[str]) -> list[str]:
    """Every file that `urls` names: a list, a brace range `a-{000..127}.tar` or choice `a-{x,y}.tar`, a glob, `::`
    between several. A file that is there is meant by its name, whatever that holds.

    Raises:
        FileNotFoundError: if a glob finds nothing.
        ValueError: for a range that counts backwards, or no name at all.
    """
    if isinstance(urls, str):
        urls = [urls] if Path(urls).exists() else urls.split("::")
    found = [file for pattern in urls for file in _expand(str(pattern))]
    if not found:
        raise ValueError("no file is named")
    return found


def _expand(pattern: str) -> list[str]:
    if not pattern:
        raise ValueError("the name of a file is empty")
    if pattern.startswith("~"):
        pattern = str(Path(pattern).expanduser())
    if Path(pattern).exists():
        return [pattern]
    brace = _BRACES.search(place_of(pattern))
    if brace:
        return [file for choice in _choices(brace) for file in _expand(_replaced(pattern, brace, choice))]
    if not has_wildcard(pattern):
        return [pattern]
    if is_url(pattern):
        files = sorted(file.full_name for file in fsspec.open_files(pattern, "rb"))
    else:
        files = sorted(glob(pattern, recursive=True))
    if not files:
        raise FileNotFoundError(f"{pattern} matches no file")
    return files


def _choices(brace: re.Match) -> list[str]:
    first, last, names = brace.groups()
    if names is not None:
        return names.split(",")
    if int(first) > int(last):
        raise ValueError(f"{brace[0]} counts backwards: write {{{last}..{first}}}")
    if int(last) - int(first) >= MOST_FILES:
        raise ValueError(f"{brace[0]} are more than {MOST_FILES:,} files")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def _replaced(pattern: str, brace: re.Match, choice: str) -> str:
    return pattern[: brace.start()] + choice + pattern[brace.end() :]


def check_present(files: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: files that are not there, may not be read, or are folders; the first few are named.
        ValueError: an unknown protocol.
        ImportError: one whose package is missing.
    """
    remote = any(map(is_url, files))
    with ThreadPoolExecutor(32 if remote else 1) as pool:
        absent = [f"{file} {reason}" for file, reason in zip(files, pool.map(_why_absent, files)) if reason]
    if absent:
        more = f", and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        count = f"{len(absent)} of {len(files)} files: " if len(files) > 1 else ""
        raise FileNotFoundError(f"{count}{', '.join(absent[:NAMED])}{more}")


def _why_absent(file: str) -> str | None:
    path = Path(file.removeprefix("file://")).expanduser()
    if not is_url(file) or file.startswith("file://"):
        if path.is_dir():
            return f"is a folder: name the files in it, as {path}/*.tar"
        return None if path.is_file() else "does not exist"
    try:
        files, name = fsspec.core.url_to_fs(file)
        about = files.info(name)
    except OSError as error:
        reason = error.__cause__ or error
        return "does not exist" if str(reason) == file else f"cannot be read ({type(reason).__name__}: {reason})"
    return "is a folder: name the files in it" if about.get("type") == "directory" else None


def shards_of(source: str, split: str | None = None) -> list[str]:
    """The tar files, or patterns of them, that a source is: by its name, or as a folder of them (of a split)."""
    folder = Path(source).expanduser()
    if not folder.exists():
        parts = source.split("::")
        return parts if all(kind_of(part) == "tar" for part in parts) else []
    if not folder.is_dir():
        return [source] if kind_of(source) == "tar" else []
    if split is not None and (folder / split).is_dir():
        folder = folder / split
    found = sorted(path for path in folder.glob("*.t*") if kind_of(path) == "tar" and path.is_file())
    return [str(path) for path in found if not is_hidden(path.name)] if found and not has_images(folder) else []


def has_images(folder: Path) -> bool:
    """Whether there is an image anywhere in a folder."""
    return any(is_image_file(name) for _, _, names in os.walk(folder) for name in names)
