"""A run that is resumed by another number of processes: the same examples in the same global batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_siglip_ext.training.components.checkpoint import LossSums, progress_file, read_progress
from modeling_siglip_ext.training.data.progress import DataProgress
from support.processes import run_worker


WORKER = Path(__file__).with_name("resume_worker.py")
STEPS = 8


def batches(folder: Path, processes: int) -> dict[int, list[str]]:
    """For each step the examples of its global batches, in the order in which the loss saw them."""
    by_process = [json.loads((folder / f"batches_{process}.json").read_text()) for process in range(processes)]
    found: dict[int, list[str]] = {}
    for parts in zip(*by_process, strict=True):
        step = parts[0][0]
        assert all(part[0] == step for part in parts)
        found.setdefault(step, []).extend(name for part in parts for name in part[1:])
    return found


def test_sums_in_other_groups_round_otherwise():
    """Why the weights of two numbers of processes agree to rounding and not bit for bit, with the sums that differ.

    The gradient of a kernel is a sum over the batch. One process adds all rows in one product, or chunk after chunk,
    ((a + b) + c) + d; of two, each adds its own, and the means are added, (a + b) + (c + d). No data and no random
    number is another: where every partial sum is exact, all groups give the same bits.
    """
    inputs, gradients = torch.randn(2, 4, 2, 5, dtype=torch.float64)

    def groups(inputs: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b, c, d = (one.mT @ other for one, other in zip(inputs, gradients))
        whole = inputs.flatten(0, 1).mT @ gradients.flatten(0, 1)
        return whole, ((a + b) + c) + d, (a + b) + (c + d)

    rounded = groups(inputs, gradients)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(rounded[one], rounded[other])
        torch.testing.assert_close(rounded[one], rounded[other], rtol=0, atol=1e-14)
    exact = groups((100 * inputs).round(), (100 * gradients).round())
    assert torch.equal(exact[0], exact[1])
    assert torch.equal(exact[0], exact[2])


@pytest.mark.slow
def test_another_number_of_processes_sees_the_same_batches(tmp_path):
    whole = {}
    for processes in (1, 2):
        whole[processes] = tmp_path / f"whole{processes}"
        run_worker(WORKER, whole[processes], STEPS, "map", processes=processes)
    assert batches(whole[1], 1) == batches(whole[2], 2)
    for first, then in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}to{then}"
        checkpoint = folder / "checkpoint-3"  # in the middle of an epoch
        shutil.copytree(whole[first] / "checkpoint-3", checkpoint)
        run_worker(WORKER, folder, STEPS, "map", checkpoint, processes=then)
        seen = batches(folder, then)
        assert seen == {step: names for step, names in batches(whole[1], 1).items() if step >= 3}
        for other in whole.values():
            expected, found = load_file(other / "final.safetensors"), load_file(folder / "final.safetensors")
            assert (found.pop("losses") - expected.pop("losses")).abs().max() < 1e-5  # Trainer sums them in float32
            for name, parameter in found.items():
                # Sums have other groups. Biases of keys have no gradient but rounding, which Adam scales up.
                rounding = 1e-9 if name.endswith(("k_proj.bias", "in_proj_bias")) else 1e-14
                torch.testing.assert_close(parameter, expected[name], rtol=0, atol=rounding, msg=name)


@pytest.mark.slow
def test_a_stream_keeps_its_processes(tmp_path):
    run_worker(WORKER, tmp_path, 3, "stream", processes=2)
    with pytest.raises(AssertionError, match="processes is 2 there and 1 here"):
        run_worker(WORKER, tmp_path, 6, "stream", tmp_path / "checkpoint-3")


@pytest.mark.slow
def test_processes_share_the_check_of_the_evaluation_images(tmp_path):
    run_worker(WORKER, tmp_path, 3, "judged", processes=2)


def test_what_processes_counted_is_merged():
    sums = LossSums(dict, lambda sums: None)
    states = [{"loss_sum": 1.0, "last_logged": 2}, {"loss_sum": 3.0, "last_logged": 2}]
    assert sums.merged(states, 1) == {"loss_sum": 2.0, "last_logged": 2}
    data, skips = DataProgress(0.5, 0), []
    for number in range(2):
        part = DataProgress(0.5, 0)
        part.skips.add(10, [(f"example {number}", "broken")])
        skips.append(part.state())
    data.load(data.merged(skips, 0))
    assert (data.skips.read, data.skips.total_skipped) == (20, 2)
    assert [name for name, _ in data.skips.skipped] == ["example 0", "example 1"]
    data.load(data.merged(skips, 1))
    assert data.skips.read == 0


def test_a_missing_part_of_a_checkpoint_is_named(tmp_path):
    progress_file(tmp_path, 0).write_text('{"processes": 3, "run": {}}')
    with pytest.raises(FileNotFoundError, match=r"progress_1\.json is missing"):
        read_progress(tmp_path, 0, 2)
