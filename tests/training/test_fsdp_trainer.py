"""The Trainer under FSDP2 trains, saves and resumes what one process does; what it cannot is refused by name."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.processes import run_workers


WORKER = Path(__file__).with_name("fsdp_trainer_worker.py")
FIRST = ("ours", "stock-late-cache")
FURTHER = ("alone", "stock-cache", "ours-accumulation", "ours-accumulation-cache", "ours-late", "ours-shards")


def compare(folder: Path, cases: tuple[str, ...]) -> None:
    """What the worker asserts holds in each process; here two of them are compared with one without FSDP."""
    one, two = folder / "1", folder / "2"
    one.mkdir(), two.mkdir()
    run_workers(WORKER, (1, [8, one, *cases]), (2, [8, two, *cases]))
    for case in cases:
        expected, found = load_file(one / f"{case}.safetensors"), load_file(two / f"{case}.safetensors")
        assert found.keys() == expected.keys()
        losses = expected.pop("losses")
        # Trainer accumulates the logged loss in float32
        assert (found.pop("losses") - losses).abs().max() < 1e-5, case
        assert max((found[name] - expected[name]).abs().max().item() for name in found) <= 1e-9, case


@pytest.mark.long
def test_two_sharded_processes_equal_one(tmp_path):
    compare(tmp_path, FIRST)


@pytest.mark.slow
def test_two_sharded_processes_equal_one_in_all_ways_to_train(tmp_path):
    compare(tmp_path, FIRST + FURTHER)
