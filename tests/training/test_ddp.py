"""Two processes under DDP train exactly the model that one process trains on the same global batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


WORKER = Path(__file__).with_name("ddp_worker.py")


def run(processes: int, folder: Path) -> None:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    finished = subprocess.run(
        [*command, str(WORKER), "8", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for processes, folder in enumerate(folders, start=1):
        run(processes, folder)
    return folders


@pytest.mark.parametrize("init", ["zero_bias", "default"])
@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_two_processes_equal_one(runs, kind, init):
    one, two = (load_file(folder / f"{kind}-{init}.safetensors") for folder in runs)
    assert one.keys() == two.keys()
    losses = one.pop("losses"), two.pop("losses")
    assert len(losses[0]) == 20
    assert losses[0][-1] < losses[0][0], "the model must have learnt for the comparison to mean anything"
    # Trainer accumulates the logged loss in float32.
    assert (losses[0] - losses[1]).abs().max() < 1e-5
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-9


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_eval_loss_does_not_depend_on_processes(runs, kind):
    one, two = (load_file(folder / f"{kind}-default.safetensors")["eval_loss"].item() for folder in runs)
    assert one == pytest.approx(two, rel=1e-9)
