"""Regions in a table of their own, put beside the rows that they are of."""

import logging

import pytest
from datasets import Dataset, Image

from modeling_siglip_ext.training.data.region_table import with_regions


def region(text: str) -> list[dict]:
    return [{"box": [0.0, 0.0, 0.5, 1.0], "text": text, "score": 0.5}]


PARTS = [Dataset.from_dict({"url": ["a", "b", "c"]}), Dataset.from_dict({"url": ["d"]})]
TABLE = Dataset.from_dict({"url": ["d", "b", "a", "c"], "regions": [region(url) for url in "dbac"]})


def words(parts: list[Dataset]) -> list[list[str | None]]:
    return [[row["regions"][0]["text"] if row["regions"] else None for row in part] for part in parts]


def test_row_by_row():
    assert words(with_regions(PARTS, TABLE, None, "boxes")) == [["d", "b", "a"], ["c"]]
    with pytest.raises(ValueError, match="boxes has regions of 3 rows, the dataset has 4"):
        with_regions(PARTS, TABLE.select(range(3)), None, "boxes")


def test_by_key_with_rows_that_have_none(caplog):
    assert words(with_regions(PARTS, TABLE, "url", "boxes")) == [["a", "b", "c"], ["d"]]
    with caplog.at_level(logging.WARNING):
        assert words(with_regions(PARTS, TABLE.select([0, 1]), "url", "boxes")) == [[None, "b", None], ["d"]]
    assert "no regions of 2 of 4 rows" in caplog.text


def test_images_are_known_by_their_urls_and_none_is_fetched():
    parts = [part.cast_column("url", Image()) for part in PARTS]
    joined = with_regions(parts, TABLE, "url", "boxes")
    assert words([part.select_columns(["regions"]) for part in joined]) == [["a", "b", "c"], ["d"]]


def test_a_column_of_the_same_name_gives_way():
    parts = [part.add_column("regions", [[]] * len(part)) for part in PARTS]
    assert words(with_regions(parts, TABLE, "url", "boxes")) == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        (TABLE.remove_columns("regions"), None, "boxes has no column 'regions'"),
        (TABLE.remove_columns("url"), "url", "boxes has no column 'url'"),
        (TABLE.rename_column("url", "id"), "id", "the dataset has no column 'id'"),
        (TABLE.select([0, 0, 1, 2]), "url", "url='d' twice, in rows 0 and 1"),
        (
            Dataset.from_dict({"url": ["x"], "regions": [region("x")]}),
            "url",
            "none of its 1 values of url is in the dataset; the first is 'x', and the dataset has 'a'",
        ),
        (TABLE, "regions", "regions_key='regions' must be a column of single values"),
    ],
)
def test_what_does_not_fit_is_named(table, key, said):
    with pytest.raises(ValueError, match=said):
        with_regions(PARTS, table, key, "boxes")
