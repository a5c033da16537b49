"""Regions that stand in a table of their own, such as a detector writes, put beside the rows that they are of."""

from typing import Any

from datasets import ClassLabel, Dataset, Image, Value, concatenate_datasets
from transformers.utils import logging

from modeling_siglip_ext.inputs import undecoded


logger = logging.get_logger(__name__)
REGIONS = "regions"


def with_regions(parts: list[Dataset], table: Dataset, key: str | None, source: str) -> list[Dataset]:
    """The parts of a dataset with a column `regions`.

    Args:
        parts: training before evaluation.
        table: with a column `regions`, and the column `key` if there is one.
        key: column of the dataset and the table that says what belongs together; of images in the dataset their paths
            or URLs do. Without it row i of the table is of row i of all parts together.
        source: of the table, for people.

    Raises:
        ValueError: naming the column that is missing, numbers of rows that differ, a key that stands twice or is no
            single value, or keys of which none is found.
    """
    _check(table, source, [REGIONS, *([] if key is None else [key])])
    count = sum(map(len, parts))
    if key is None:
        if len(table) != count:
            raise ValueError(
                f"{source} has regions of {len(table)} rows, the dataset has {count}: use the file that was made of "
                "it, or set regions_key to a column that says what belongs together"
            )
        places, start = [], 0
        for part in parts:
            places.append(list(range(start, start + len(part))))
            start += len(part)
    else:
        table, places = _by_key(parts, table, key, source)
    table = table.select_columns([REGIONS])
    return [
        concatenate_datasets([part.remove_columns([REGIONS] if REGIONS in part.column_names else []), own], axis=1)
        for part, own in zip(parts, (table.select(rows) for rows in places))
    ]


def _by_key(parts: list[Dataset], table: Dataset, key: str, source: str) -> tuple[Dataset, list[list[int]]]:
    """The table, with a last row without regions, and the row of it for each row of the parts."""
    known: dict[object, int] = {}
    for row, value in enumerate(_values(table, key)):
        if known.setdefault(value, row) != row:
            raise ValueError(f"{source} has {key}={value!r} twice, in rows {known[value]} and {row}")
    nothing = Dataset.from_dict({REGIONS: [[]]}, features=table.select_columns([REGIONS]).features)
    for part in parts:
        _check(part, "the dataset", [key])
    values = [_values(part, key) for part in parts]
    places = [[known.get(value, len(table)) for value in some] for some in values]
    count, missing = sum(map(len, places)), sum(row == len(table) for rows in places for row in rows)
    if count and missing == count:
        first = next(value for some in values for value in some)
        example = f"the first is {next(iter(known))!r}, and the dataset has {first!r}"
        raise ValueError(f"{source}: none of its {len(table)} values of {key} is in the dataset; {example}")
    if missing:
        logger.warning("%s has no regions of %s of %s rows; they are trained without", source, missing, count)
    return concatenate_datasets([table.select_columns([REGIONS]), nothing]), places


def _values(rows: Dataset, key: str) -> list[Any]:
    feature = rows.features[key]
    if isinstance(feature, Image):
        return [image and image["path"] for image in undecoded(rows.select_columns([key]), key)[key]]
    if not isinstance(feature, (Value, ClassLabel)):
        raise ValueError(f"regions_key={key!r} must be a column of single values, as names and numbers are")
    return list(rows[key])


def _check(table: Dataset, what: str, columns: list[str]) -> None:
    for column in columns:
        if column not in table.column_names:
            raise ValueError(f"{what} has no column {column!r}; it has {', '.join(table.column_names)}")
