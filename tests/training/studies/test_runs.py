"""Results on disk: nothing finished is lost, and a line that was cut off is no result."""

import pytest

from modeling_siglip_ext.training.studies.experiment import Settings
from modeling_siglip_ext.training.studies.runs import Runs


def test_results_come_back(tmp_path):
    runs = Runs(tmp_path / "deep" / "runs.jsonl")
    several = Settings(languages=("en", "de"), bias=-3.5)
    runs.add(Settings(seed=1), {"held_out_mrr": 0.1 + 0.2})
    runs.add(several, {"held_out_mrr": 0.5})
    again = Runs(runs.path)
    assert again.figures == runs.figures
    assert several in again
    assert Settings(seed=2) not in again
    assert again.values([Settings(seed=1), Settings(seed=2)], "held_out_mrr") == [0.1 + 0.2]


def test_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path).add(Settings(seed=1), {"loss": 1.0})
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole + whole[:cut])
        runs = Runs(path)
        assert list(runs.figures) == [Settings(seed=1)]
        runs.add(Settings(seed=2), {"loss": 2.0})
        assert list(Runs(path).figures) == [Settings(seed=1), Settings(seed=2)], cut


def test_a_whole_line_without_its_end(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path).add(Settings(seed=1), {"loss": 1.0})
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    Runs(path).add(Settings(seed=2), {"loss": 2.0})
    assert list(Runs(path).figures) == [Settings(seed=1), Settings(seed=2)]


@pytest.mark.parametrize("entry", ['{"settings": {"colour": 1}, "figures": {}}', '{"figures": {}}', "[]"])
def test_runs_of_another_experiment_are_named(entry, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(entry + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl has a run that is none of this experiment"):
        Runs(path)
