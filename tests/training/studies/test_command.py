"""Studies as commands: what they want, what they write, and that they go on where they were."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from modeling_siglip_ext.training.studies import command
from modeling_siglip_ext.training.studies.experiment import Settings
from modeling_siglip_ext.training.studies.report import interval, write_study_report
from modeling_siglip_ext.training.studies.runs import Runs
from modeling_siglip_ext.training.studies.study import EMOJI, SWEEP_SEEDS, Chart, Plan, Study
from support.studies import fails_at_seed_1


class Invented(dict):
    """Figures of a run that was not made: these tests are about which runs are wanted."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def __missing__(self, figure: str) -> float:
        return random.Random(f"{self.settings} {figure}").random()


@pytest.mark.parametrize("name", command.STUDIES)
def test_a_study_comes_to_an_end(name, tmp_path):
    study = command.STUDIES[name]
    runs = Runs(tmp_path / study.experiment.file, study.experiment.settings)
    for _ in range(50):
        missing = [one for one in dict.fromkeys(study.wanted(runs, 3)) if one not in runs]
        study.charts(runs, 3)  # also of an unfinished study
        if not missing:
            break
        for one in missing:
            runs.figures[one] = Invented(one)
    assert not missing
    write_study_report(study, runs, 3, tmp_path)
    values = [place for chart in study.charts(runs, 3) for line in chart.ours.values() for place in line.values()]
    assert len(values) >= 4
    assert {len(place) for place in values} == {3}, "three seeds a point"
    assert all(one.seed in (0, 1, 2, *SWEEP_SEEDS) for one in runs.figures)
    text = (tmp_path / f"{name}.md").read_text()
    assert f"siglip-ext-train study {name}" in text
    assert "(3)" in text
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_intervals_and_tables(tmp_path):
    values = [10.0, 12.0, 17.0]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2)
    assert interval([1.0]) == math.inf
    figure = Chart("A", "x", {"ours": {"1": values, "2": [5.0], "3": []}}, "elsewhere", {"theirs": {"7": 50.0}})
    study = Study("tiny", "a study", lambda plan: [figure])
    empty = Study("empty", "not begun", lambda plan: [Chart("A", "x", {"ours": {}})])
    write_study_report(empty, Runs(tmp_path / "none"), 3, tmp_path)
    data, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert json.loads(data.read_text())[0]["ours"]["ours"]["1"] == values
    lines = table.read_text().splitlines()
    assert f"| 1 | 13.0 ± {interval(values):.1f} (3) |" in lines
    assert "| 2 | 5.0 (1) |" in lines
    assert "| 7 | 50.0 |" in lines


def test_the_papers_figures_stand_beside_ours(tmp_path):
    beside = Chart("A", "x", {"ours": {"a": [1.0], "b": [2.0]}}, "there", {"paper": {"b": 3.0}}, note="A note.")
    study = Study("tiny", "a study", lambda plan: [beside])
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert table.read_text().splitlines()[-6:] == [
        "| x | ours | there, paper |",
        "|---|---:|---:|",
        "| a | 1.0 (1) |  |",
        "| b | 2.0 (1) | 3.0 |",
        "",
        "A note.",
    ]
    beside.paper_interval = {"paper": {"b": 0.5}}
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert "| b | 2.0 (1) | 3.0 ± 0.5 |" in table.read_text().splitlines()


def test_a_note_that_all_charts_share_is_said_once(tmp_path):
    charts = [Chart(title, "x", {"ours": {"a": [1.0]}}, note="A note.") for title in "AB"]
    study = Study("tiny", "a study", lambda plan: charts)
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert table.read_text().count("A note.") == 1
    charts[1].note = "Another."
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert table.read_text().count("A note.") == table.read_text().count("Another.") == 1


def test_lines_of_different_figures_are_not_compared(tmp_path):
    lines = {"names found": {"1": [10.0, 20.0]}, "word for word": {"1": [5.0, 6.0]}}
    study = Study("tiny", "a study", lambda plan: [Chart("A", "x", lines, comparable=False)])
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 2, tmp_path)
    assert "| x | names found | word for word |" in table.read_text().splitlines()


def test_two_lines_are_compared_seed_by_seed(tmp_path):
    figure = Chart("A", "x", {"one": {"1": [10.0, 20.0, 30.0]}, "other": {"1": [12.0, 22.0, 32.0]}})
    study = Study("tiny", "a study", lambda plan: [figure])
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 3, tmp_path)
    assert "| x | one | other | other − one, by seed |" in table.read_text()
    assert table.read_text().splitlines()[-1].endswith("| 2.0 ± 0.0 (3) |")


def test_places_are_compared_with_one_of_them(tmp_path):
    figure = Chart("A", "x", {"one": {"a": [10.0, 20.0], "b": [11.0, 21.0], "c": [9.0]}}, reference="a")
    study = Study("tiny", "a study", lambda plan: [figure])
    _, table, _ = write_study_report(study, Runs(tmp_path / "none"), 2, tmp_path)
    lines = table.read_text().splitlines()
    assert "| x | one | one, less that at a |" in lines
    assert "| b | 16.0 ± 63.5 (2) | 1.0 ± 0.0 (2) |" in lines
    assert lines[-1] == "| c | 9.0 (1) |  |"


def quick(plan: Plan) -> list[Chart]:
    return [Chart("Quick", "x", plan.recalls({"quick": {"16": Settings(batch_size=16, examples=32)}}))]


@pytest.mark.slow
def test_parallel_and_resumed(tmp_path):
    study = Study("quick", "quick", quick)
    runs = Runs(tmp_path / "runs.jsonl")
    assert command.make_runs([study], runs, seeds=3, workers=1, limits=command.Limits(runs=1)) == (2, [])
    assert len(Runs(runs.path).figures) == 1
    assert command.make_runs([study], Runs(runs.path), seeds=3, workers=2) == (0, [])
    both = Runs(runs.path)
    assert set(both.figures) == {Settings(batch_size=16, examples=32, seed=seed) for seed in range(3)}
    alone = Runs(tmp_path / "alone.jsonl")
    command.make_runs([study], alone, seeds=3, workers=1)
    for settings, figures in both.figures.items():
        one, two = ({k: v for k, v in f.items() if k != "seconds"} for f in (figures, alone.figures[settings]))
        assert one == two, "the number of workers changes nothing"


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    study = Study("quick", "quick", quick, replace(EMOJI, run=fails_at_seed_1))
    left, failed = command.make_runs([study], runs := Runs(tmp_path / "runs.jsonl"), seeds=3, workers=1)
    assert (left, len(failed)) == (1, 1)
    assert "out of memory" in str(failed[0])
    assert {one.seed for one in runs.figures} == {0, 2}


def test_no_run_is_started_late(tmp_path):
    study = Study("quick", "quick", quick)
    limits = command.Limits(seconds=-1)
    assert command.make_runs([study], Runs(tmp_path / "runs.jsonl"), seeds=3, workers=1, limits=limits) == (3, [])


def test_errors(refused):
    refused(["study", "batch-size", "place"], "different data")
    refused(["study", "batch-size", "--device", "cuda"], "these runs can be made on cpu")
    refused(["study", "place", "--device", "qua!"], "these runs can be made on cpu")
    refused(["study", "batch-sise"], "unknown study 'batch-sise': did you mean 'batch-size'")
    refused(["study", "nothing"], "unknown study 'nothing'")
    refused(["study", "batch-size", "--seeds", "0"], "at least 1")
    refused(["study", "batch-size", "--max_runs", "-1"], "--max_runs must not be negative, got -1")
    refused(["study", "batch-size", "--max_seconds", "nan"], "--max_seconds must not be negative, got nan")
    refused(["study", "batch-size", "--output_dir", __file__], "is a file; choose another folder")
    refused(["study", "batch-size", "--sedes", "1"], "did you mean '--seeds'")
