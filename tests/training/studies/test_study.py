"""How a study chooses its settings: on validation, with seeds of their own, until the best lies between others."""

from dataclasses import replace

from modeling_siglip_ext.training.studies.experiment import Settings
from modeling_siglip_ext.training.studies.runs import Runs
from modeling_siglip_ext.training.studies.study import SWEEP_SEEDS, seed_by_seed, sweep, tuned


def finished(runs: Runs, wanted: list[Settings], score) -> list[Settings]:
    """Give runs that are missing the validation score of a function; returns those."""
    missing = [one for one in wanted if one not in runs]
    for one in missing:
        runs.figures[one] = {"validation_mrr": score(one), "held_out_mrr": -score(one)}
    return missing


def test_a_sweep_goes_on_until_the_best_lies_between_others(tmp_path):
    for best, expected in ((2.0, [1, 2, 4]), (0.3, [0.125, 0.25, 0.5, 1, 2, 4]), (9.0, [1, 2, 4, 8, 16])):
        runs = Runs(tmp_path / "none")
        wanted, chosen = sweep(runs, Settings(), "learning_rate", (1.0, 2.0, 4.0))
        while chosen is None:
            assert finished(runs, wanted, lambda one, best=best: -abs(one.learning_rate - best))
            wanted, chosen = sweep(runs, Settings(), "learning_rate", (1.0, 2.0, 4.0))
        assert sorted({one.learning_rate for one in wanted}) == expected
        assert {one.seed for one in wanted} == set(SWEEP_SEEDS)
        assert chosen == Settings(learning_rate=min(expected, key=lambda rate: abs(rate - best)))


def test_the_best_is_that_of_the_mean_over_seeds(tmp_path):
    runs = Runs(tmp_path / "none")
    scores = {(1.0, 1000): 0.1, (2.0, 1000): 0.5, (4.0, 1000): 0.6, (1.0, 1001): 0.1, (2.0, 1001): 0.5, (4.0, 1001): 0}
    wanted, _ = sweep(runs, Settings(), "learning_rate", (1.0, 2.0, 4.0))
    finished(runs, wanted, lambda one: scores[one.learning_rate, one.seed])
    assert sweep(runs, Settings(), "learning_rate", (1.0, 2.0, 4.0))[1] == Settings(learning_rate=2.0)


def test_the_rate_is_chosen_before_the_temperature(tmp_path):
    runs = Runs(tmp_path / "none")
    wanted, chosen = tuned(runs, Settings())
    assert {one.temperature for one in wanted} == {Settings().temperature}
    while chosen is None:
        finished(runs, wanted, lambda one: -abs(one.learning_rate - 2e-3) - abs(one.temperature - 30))
        wanted, chosen = tuned(runs, Settings())
    assert chosen == Settings(learning_rate=2e-3, temperature=20.0)
    assert {one.temperature for one in wanted} == {5.0, 10.0, 20.0, 40.0}


def test_the_first_seed_of_all_comes_first():
    one, two = Settings(batch_size=32), Settings(batch_size=64)
    assert seed_by_seed([one, None, two, one], 2) == [replace(p, seed=seed) for seed in (0, 1) for p in (one, two)]
