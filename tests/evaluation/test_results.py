"""A result comes back from its file as it was, and what an older file lacks is None."""

import json

import pytest

from modeling_siglip_ext.evaluation.data import Provenance
from modeling_siglip_ext.evaluation.results import (
    Counts,
    EvaluatedModel,
    Result,
    compare,
    read_results,
    write_result,
)
from modeling_siglip_ext.hub.results import is_share


RESULT = Result(
    "knn",
    {"accuracy@1": 0.5, "C": 10.0},
    model=EvaluatedModel("user/model", "abc", None, "SiglipModel", "bfloat16"),
    dataset=Provenance("user/set", "pets", None, "test", 7, "f", {"image": "img"}),
    counts=Counts(test_rows=7, test_unreadable=[3]),
    settings={"k": 20},
    train=Provenance("user/set", "pets", None, "train", 9, "g", {"image": "img"}),
    device="cpu",
    processes=1,
    seconds=0.5,
)


def test_a_result_comes_back_from_its_file(tmp_path):
    path = write_result(tmp_path / "deep" / "knn.json", RESULT)
    (found,) = read_results([tmp_path]).values()
    assert found.date is not None
    assert found.versions["python"]
    assert {**found.to_json(), "command": 0, "versions": 0, "date": 0} == {
        **RESULT.to_json(), "command": 0, "versions": 0, "date": 0
    }  # fmt: skip
    content = json.loads(path.read_text())
    assert content["model"] == {
        "name": "user/model", "weights": "abc", "revision": None, "class": "SiglipModel", "dtype": "bfloat16"
    }  # fmt: skip
    assert content["dataset"]["train"]["rows"] == 9
    assert content["dataset"]["test_unreadable"] == [3]
    assert content["dataset"]["config"] is None
    assert "predictions" not in content


def test_an_older_file_may_lack_what_is_new():
    found = Result.from_json({"task": "zero-shot", "metrics": {}, "dataset": {"source": "x", "later": 1}})
    assert found.dataset == Provenance("x")
    assert (found.model, found.counts, found.date) == (None, Counts(), None)


def test_other_files_are_passed_over_and_damaged_ones_named(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="no results in"):
        read_results([tmp_path])
    (tmp_path / "half.json").write_text('{"task": ')
    with pytest.raises(ValueError, match=r"half\.json is damaged"):
        read_results([tmp_path])


def test_shares_are_in_percent_and_runs_of_one_name_told_apart(tmp_path):
    for run in ("one", "two"):
        write_result(tmp_path / run / "knn.json", RESULT)
    text = compare([tmp_path])
    assert "| accuracy@1 | 50.0 | 50.0 |" in text
    assert "| C | 10 | 10 |" in text
    assert "| model (one) | model (two) |" in text
    assert is_share("text_to_image_recall@5")
    assert not is_share("threshold")


@pytest.mark.parametrize("model", [{"revision": "abc"}, "a name"])
def test_foreign_content_is_named(tmp_path, model):
    (tmp_path / "other.json").write_text(json.dumps({"task": "x", "metrics": {}, "model": model}))
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        read_results([tmp_path])


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json is no result and no folder of results"):
        read_results([tmp_path / "nowhere.json"])
