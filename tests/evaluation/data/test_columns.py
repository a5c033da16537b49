"""Captions and labels of a table."""

import datasets

from modeling_siglip_ext.evaluation.data.classes import read_lines_or_json
from modeling_siglip_ext.evaluation.data.columns import captions, labels
from modeling_siglip_ext.evaluation.data.text_files import lines_of


def test_only_ends_of_lines_end_captions():
    """Not what `str.splitlines` takes for one."""
    texts = ["a cat\u2028on a mat", "caf\x85e", "one\x0ctwo", "first\nsecond\r\nthird"]
    found = captions(datasets.Dataset.from_dict({"caption": texts}), "caption")
    assert found == [[texts[0]], [texts[1]], [texts[2]], ["first", "second", "third"]]


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("a text\u2028still the first\r\n\nthe third\n".encode())
    assert lines_of(path.read_bytes().decode()) == ["a text\u2028still the first", "", "the third"]
    assert lines_of("") == []
    assert read_lines_or_json(str(path)) == ["a text\u2028still the first", "the third"]


def test_of_classes_of_one_name_the_first_is_the_label():
    rows = datasets.Dataset.from_dict({"label": ["crane", "dog"]})
    assert labels(rows, "label", ["crane", "dog", "crane"]) == [[0], [1]]
