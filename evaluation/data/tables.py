"""Tables that people write as text: CSV, TSV, JSON and JSON lines, and their columns of paths as images.

Rows are neither dropped nor guessed: a line that cannot be right is an error with its number. Captions stay text, "NA"
and "null" included.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from stat import S_ISREG
from typing import Any

import datasets
import pyarrow as pa
from transformers.utils import logging

from modeling_siglip_ext.embedding_store import fingerprint

from .columns import CAPTION_COLUMNS, IMAGE_COLUMNS, usual
from .sources import is_url, place_of
from .text_files import open_text


logger = logging.get_logger(__name__)
SEPARATORS = (",", ";", "\t", "|")
CHUNK_ROWS = 10_000
LONGEST_FIELD = 2**31 - 1  # an image in base64 is longer than what the csv module takes unasked
INTEGERS = r"(0|-?[1-9][0-9]{0,17})?"
NO_VALUE = "nothing that can be stored"
UNFIT = (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError)


@contextmanager
def long_fields() -> Generator[None]:
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def checked_separator(separator: str) -> str:
    """
    Raises:
        ValueError: it is not one character that can separate values.
    """
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(separator) != 1 or separator in '"\r\n':
        raise ValueError(f"separator must be one character, such as ';' or '\\t', got {separator!r}")
    return separator


def separator_of(path: str, header: str) -> str:
    """The separator that occurs most in the line of names."""
    order = sorted(SEPARATORS, key=lambda one: one != "\t") if ".tsv" in path.lower() else SEPARATORS
    return max(order, key=header.count)


def read_csv(path: str, separator: str | None = None) -> pa.Table:
    """Rows of a CSV or TSV file; columns of whole numbers are integers, all others text.

    Args:
        separator: of the values; found in the first line unless given.

    Raises:
        ValueError: naming the file, and the line that is not as the first one.
    """
    with open_text(path) as text, long_fields():
        first = next((line for line in text if line.strip()), "")
        separator = separator_of(path, first) if separator is None else checked_separator(separator)
        lines = chain([first] if first else [], text)
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        try:
            names = [name.strip() or f"column {place}" for place, name in enumerate(next(reader, []))]
            doubled = [name for name, count in Counter(names).items() if count > 1]
            if doubled:
                raise ValueError(f"{path} has several columns named {doubled[0]!r}")
            chunks = list(_chunks(path, names, reader, separator))
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}. A value with quotes or line ends in it goes in double "
                "quotes, its own quotes doubled"
            ) from error
    if not chunks:
        raise ValueError(f"{path} has no rows")
    return with_integers(pa.concat_tables(chunks))


def _chunks(path: str, names: Sequence[str], reader: Any, separator: str) -> Iterator[pa.Table]:
    values: list[list[str]] = []
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(row)} values for {len(names)} columns. A value with "
                f"{separator!r} in it goes in double quotes"
            )
        values.append(row)
        if len(values) == CHUNK_ROWS:
            yield _table(names, values)
            values = []
    if values:
        yield _table(names, values)


def _table(names: Sequence[str], values: Sequence[Sequence[str]]) -> pa.Table:
    columns = zip(*values)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns)})


def with_integers(table: pa.Table) -> pa.Table:
    """A table of text whose columns of whole numbers are integers; captions and images stay text."""
    for place, name in enumerate(table.column_names):
        if usual([name], (*CAPTION_COLUMNS, *IMAGE_COLUMNS)):
            continue
        values = table[name].to_pylist()
        if any(values) and all(re.fullmatch(INTEGERS, value) for value in values):
            integers = pa.array([int(value) if value else None for value in values], pa.int64())
            table = table.set_column(place, name, integers)
    return table


def read_json(path: str) -> pa.Table:
    """The columns of `json_rows`; see `as_column`."""
    rows = json_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError(f"{path} has no rows")
    return pa.table({name: as_column(path, name, [row.get(name) for row in rows]) for name in names})


def json_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSON file (a list of mappings, a mapping of columns, or one with a single list of mappings) or of JSON
    lines.

    Raises:
        ValueError: naming the file, and the line that is no JSON.
    """
    with open_text(path) as file:
        text = file.read()
    if not text.strip():
        raise ValueError(f"{path} has no rows")
    try:
        content = parsed(path, text)
    except json.JSONDecodeError as whole:
        content = list(_lines(path, text, whole))
    return rows_in(path, content)


def parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply") from error


def _lines(path: str, text: str, whole: json.JSONDecodeError) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield parsed(path, line)
        except json.JSONDecodeError as own:
            error, place = (whole, whole.lineno) if number == 1 else (own, number)
            raise ValueError(f"{path}, line {place}: no JSON: {error.msg}") from own


def rows_in(path: str, content: Any) -> list[dict[str, Any]]:
    """The rows in what a JSON file holds."""
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if len(lists) < len(content) and usual(content, IMAGE_COLUMNS):  # one line of JSON lines
            return [content]
        tables = [value for value in lists.values() if value and all(isinstance(row, dict) for row in value)]
        if len(tables) > 1:
            raise ValueError(f"{path} holds several tables ({', '.join(lists)}), not one list of rows")
        if tables:
            return tables[0]
        if lists and len(lists) == len(content) and len({len(value) for value in lists.values()}) == 1:
            return [dict(zip(lists, row)) for row in zip(*lists.values())]
        return [content]
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no rows, but a {type(content).__name__}")
    odd = next((row for row, value in enumerate(content) if not isinstance(value, dict)), None)
    if odd is not None:
        raise ValueError(f"{path}: row {odd} is no mapping of names to values, but {content[odd]!r:.60}")
    return content


def as_column(path: str, name: str, values: list[Any]) -> pa.Array:
    """Values as a column of one type. Text beside lists of texts become lists; what is of a rarer type is left empty,
    counted and named.
    """
    try:
        return pa.array(values)
    except UNFIT:
        pass
    if all(value is None or isinstance(value, (str, list)) for value in values) and any(
        isinstance(value, list) for value in values
    ):
        values = [[value] if isinstance(value, str) else value for value in values]
    types = [_type_of(value) for value in values]
    ranked = Counter(one for one in types if one not in (None, NO_VALUE)).most_common(1)
    if not ranked:
        raise ValueError(f"{path}: no value of {name!r} can be stored, e.g. {next(filter(None, values), None)!r:.60}")
    common = ranked[0][0]
    odd = [row for row, one in enumerate(types) if one not in (None, common)]
    if odd:
        shown = f"row {odd[0]}: {values[odd[0]]!r:.60}"
        logger.warning("%s: %d values of %r are no %s and left empty, e.g. %s", path, len(odd), name, common, shown)
    left_out = set(odd)
    try:
        return pa.array([None if row in left_out else value for row, value in enumerate(values)])
    except UNFIT as error:
        raise ValueError(f"{path}: the values of {name!r} are of different kinds: {error}") from error


def _type_of(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return str(pa.array([value]).type)
    except UNFIT:
        return NO_VALUE


def with_images(rows: datasets.Dataset, name: str | None, source: str) -> datasets.Dataset:
    """A dataset whose column of paths or URLs is one of images, undecoded until they are asked for.

    Args:
        name: the column; None where there is none.
        source: the file of the rows, to whose folder paths are relative; else they may be to the current one.

    Raises:
        FileNotFoundError: none of the files is there.
    """
    if name is None or getattr(rows.features[name], "dtype", None) not in ("string", "large_string"):
        return rows
    source = source.removeprefix("file://")
    folder = place_of(source).rpartition("/")[0] if is_url(source) else os.path.dirname(os.path.abspath(source))
    placed = [image_place(value, folder) for value in rows.data.column(name).to_pylist()]
    absent = [place for place, about in placed if about is None]
    if absent:
        shown = f"e.g. {absent[0]}: paths are relative to the folder of the file"
        if len(absent) == len(placed):
            raise FileNotFoundError(f"{source}: none of its {len(placed)} images in {name!r} is there, {shown}")
        logger.warning("%s: %d of %d images in %r are not there, %s", source, len(absent), len(placed), name, shown)
    mark = fingerprint({"rows": rows._fingerprint, "images": [about for _, about in placed]})
    images = [place for place, _ in placed]
    found = rows.remove_columns(name).add_column(name, images, new_fingerprint=mark)
    return found.select_columns(rows.column_names).cast_column(name, datasets.Image())


def image_place(value: str | None, folder: str) -> tuple[str | None, str | None]:
    """Where an image is that a row names, and a mark that changes with the file; None where it is not there."""
    if value is None or not value.strip():
        return None, ""
    value = value.strip()
    if value.startswith("file://"):
        value = value.removeprefix("file://")
    if is_url(value) or value.startswith("data:"):
        return value, ""
    if is_url(folder):
        return f"{folder}/{value.lstrip('./')}", ""
    own = os.path.expanduser(value)
    for path in (os.path.join(folder, own), own, os.path.join(folder, own.replace("\\", "/"))):
        try:
            about = os.stat(path)
        except (OSError, ValueError):  # the latter for what no path can be, such as an image in base64
            continue
        if S_ISREG(about.st_mode):
            return os.path.abspath(path), f"{about.st_size} {about.st_mtime_ns}"
    if len(value) > 255 and re.fullmatch(r"[A-Za-z0-9+/=\s]+", value):
        return value, ""
    return os.path.join(folder, own), None


def read_table(path: str, kind: str, separator: str | None = None) -> datasets.Dataset:
    """The rows of a file of the kind "csv" or "json"."""
    table = read_csv(path, separator) if kind == "csv" else read_json(path)
    return datasets.Dataset(table)
