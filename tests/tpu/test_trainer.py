"""SiglipExtTrainer on XLA:CPU against the same training by torch on the CPU, and against itself when resumed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


TORCH = [
    "sgd",
    "adamw",
    "own-adamw",
    "adamw-bf16",
    "adafactor",
    "accumulation",
    "cache",
    "checkpointing",
    "average",
    "bf16",
]
ONE = [*TORCH, "resumed"]
SPMD = ["spmd", "spmd-sharded", "spmd-cache", "spmd-resumed"]
FIGURES = ("losses", "eval_loss", "positive_logit", "grad_norm_vision", "temperature")


@pytest.fixture(scope="module")
def torch_runs(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    run("worker_trainer.py", folder, *TORCH, USE_TORCH_XLA="0")
    return folder


@pytest.fixture(scope="module")
def one_device(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run("worker_trainer.py", folder, *ONE)
    return folder


@pytest.fixture(scope="module")
def four_devices(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    run("worker_trainer.py", folder, *SPMD, devices=4)
    return folder


# The gradient of a key's bias is 0, as softmax does not see it: optimisers that normalise move it by rounding errors.
WITH_KEYS = ("k_proj.bias", "in_proj_bias")


def difference(one: Path, other: Path, but: tuple[str, ...] = ()) -> float:
    """The largest between any two weights or logged figures."""
    one, other = load_file(one), load_file(other)
    names = [name for name in one.keys() & other.keys() if name != "compilations" and not name.endswith(but)]
    assert len(names) > 30
    assert set(FIGURES) <= set(names)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in names)


@pytest.mark.parametrize("case", ["sgd", "accumulation", "cache", "checkpointing", "average"])
def test_twenty_sgd_steps_on_one_device(case, one_device, torch_runs):
    assert difference(one_device / f"{case}.safetensors", torch_runs / f"{case}.safetensors") <= 1e-5


@pytest.mark.parametrize("case", ["adamw", "own-adamw", "adamw-bf16", "adafactor"])
def test_optimisers(case, one_device, torch_runs):
    """The default is the fused AdamW, which XLA lacks. Roots of tiny numbers make rounding visible."""
    assert difference(one_device / f"{case}.safetensors", torch_runs / f"{case}.safetensors", WITH_KEYS) <= 1e-4


@pytest.mark.parametrize(("case", "reference"), [("spmd", "sgd"), ("spmd-cache", "cache")])
def test_twenty_sgd_steps_under_spmd_on_four_devices(case, reference, four_devices, torch_runs):
    assert difference(four_devices / f"{case}.safetensors", torch_runs / f"{reference}.safetensors") <= 1e-5


def test_parameters_and_optimiser_in_parts_on_four_devices(four_devices, torch_runs):
    """The worker has checked that they lie in parts."""
    assert difference(four_devices / "spmd-sharded.safetensors", torch_runs / "adamw.safetensors") <= 1e-4


@pytest.mark.parametrize(
    "case", ["sgd", "adamw", "adafactor", "average", "cache", "accumulation", "spmd", "spmd-sharded"]
)
def test_nothing_is_compiled_after_the_second_step(case, request):
    """But for a few small graphs when figures are logged for the first time, after step 5. Step 7 begins an epoch."""
    folder = request.getfixturevalue("four_devices" if case.startswith("spmd") else "one_device")
    counts = load_file(folder / f"{case}.safetensors")["compilations"].tolist()
    assert len(counts) == 20
    assert counts[1] == counts[4]
    assert counts[5] == counts[-1]


@pytest.mark.parametrize("case", ["resumed", "spmd-resumed"])
def test_a_resumed_run_ends_like_one_that_was_not(case, request):
    folder = request.getfixturevalue("four_devices" if case.startswith("spmd") else "one_device")
    straight = load_file(folder / f"{case}-straight.safetensors")
    resumed = load_file(folder / f"{case}.safetensors")
    assert all(torch.equal(weight, resumed[name]) for name, weight in straight.items())
    counts = resumed["compilations"].tolist()[20:]  # steps 11 to 20, with the first log line after step 15
    assert counts[1] == counts[4]
    assert counts[5] == counts[-1]


def test_bfloat16(one_device, torch_runs):
    """The loss stays in float32, so bfloat16 towers learn what float32 ones do."""
    losses = load_file(one_device / "bf16.safetensors")["losses"]
    expected = load_file(torch_runs / "sgd.safetensors")["losses"]
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)
    assert not torch.equal(losses, expected)


def test_bfloat16_as_accelerate_treats_it_on_a_tpu(run, tmp_path, one_device):
    """There it has torch_xla make all float32 bfloat16; the Trainer undoes that before a tensor is on the device."""
    run("worker_trainer.py", tmp_path, "bf16", AS_ON_A_TPU="1")
    assert difference(tmp_path / "bf16.safetensors", one_device / "bf16.safetensors") <= 1e-6
