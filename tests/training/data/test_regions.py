"""Regions beside a caption, in the forms that data sets have them."""

import pytest
from datasets import Dataset

from modeling_siglip_ext.training import ImageTextDataset
from modeling_siglip_ext.training.data.regions import Region, as_regions, word_ngrams
from modeling_siglip_ext.training.data.samples import UnusableRowError


CAT = {"box": [0.1, 0.2, 0.5, 0.6], "text": "a cat", "score": 0.9}
DOG = {"box": [0.0, 0.0, 1.0, 1.0], "text": "a dog", "score": 0.3}
RAT = {"box": [0.0, 0.0, 1.0, 1.0], "text": "a rat", "score": 0.29}
FOUND = [Region((0.1, 0.2, 0.5, 0.6), "a cat"), Region((0, 0, 1, 1), "a dog")]


def test_regions_that_the_detector_is_sure_of():
    assert as_regions([CAT, DOG, RAT]) == FOUND
    assert as_regions([CAT, DOG, RAT], min_score=0.95) == []
    unscored = [{name: entry[name] for name in ("box", "text")} for entry in (CAT, DOG)]
    assert as_regions(unscored) == as_regions([{**entry, "score": None} for entry in unscored]) == FOUND


@pytest.mark.parametrize("nothing", [None, [], {}, {"box": [], "text": []}])
def test_no_regions(nothing):
    assert as_regions(nothing) == []


def test_as_datasets_gives_them():
    rows = Dataset.from_list([{"regions": [CAT, DOG, RAT]}, {"regions": []}])
    assert [as_regions(value) for value in rows["regions"]] == [FOUND, []]
    columns = {name: [entry[name] for entry in (CAT, DOG, RAT)] for name in CAT}
    assert as_regions(columns) == as_regions({**columns, "colour": None}) == FOUND


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a cat", "a list of mappings"),
        ([1], "a list of mappings"),
        ({"box": [[0, 0, 1, 1]], "text": []}, "a list of mappings"),
        ({"box": 3}, "a list of mappings"),
        ([{"box": [0, 0, 1, 1]}], "a region needs a text"),
        ([{"box": [0, 0, 1, 1], "text": " "}], "a region needs a text"),
        ([{"text": "a cat"}], "a region needs a box"),
        ([{**CAT, "box": [10, 20, 30, 40]}], "'a cat': box .* give shares"),
        ([{**CAT, "score": "high"}], "score"),
    ],
)
def test_what_are_no_regions_is_an_unusable_row(value, reason):
    with pytest.raises(UnusableRowError, match=reason):
        as_regions(value)


def test_a_wrong_region_is_found_at_the_start_whatever_its_score(rows):
    """`min_score` may be lower than it is by default, and a worker that meets the region then would end the run."""
    regions = [[] for _ in rows]
    regions[3] = [{**RAT, "box": [10.0, 20.0, 30.0, 40.0]}]
    data = ImageTextDataset(rows.add_column("regions", regions), region_column="regions", max_bad_fraction=0.1)
    assert len(data) == len(rows) - 1
    assert data.left_out[0][0] == "example 3"
    assert "give shares" in data.left_out[0][1]


def test_regions_are_shuffled_with_the_captions(rows):
    """They say as much of an image as its caption does."""
    texts = list(rows["caption"])
    own = rows.add_column("regions", [[{"box": [0.0, 0.0, 1.0, 1.0], "text": text, "score": None}] for text in texts])
    data = ImageTextDataset(own, region_column="regions", shuffle_captions=True)
    items = [data[index] for index in range(len(data))]
    assert all(item["regions"][0]["text"] == item["caption"] != text for item, text in zip(items, texts))


def test_word_ngrams():
    assert word_ngrams("a red  cat") == ["a", "red", "cat", "a red", "red cat", "a red cat"]
    assert word_ngrams("the cat the cat", longest=2) == ["the", "cat", "the cat", "cat the"]
    assert len(word_ngrams(" ".join(map(str, range(12))))) == sum(range(3, 13))
    assert word_ngrams("") == []
