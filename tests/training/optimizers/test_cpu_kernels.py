"""The compiled loops of ScalingViT-Adafactor against tensor operations, whatever the values, shapes and threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.training.optimizers import ScalingViTAdafactor, cpu_kernels, scaling_vit_adafactor


SHAPES = ((40, 36), (300, 33), (33, 600), (5, 7), (3, 4, 5), (9,), ())


def train() -> list[torch.Tensor]:
    """Parameters, moments and second moments after four steps, with the loops or without."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = ScalingViTAdafactor(parameters, lr=0.01, weight_decay=0.1)
    for _ in range(4):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [*parameters, *(value for state in optimizer.state.values() for value in state.values())]


@pytest.fixture
def without_numba(monkeypatch):
    """As if numba were not installed."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, cpu_kernels.__name__)
    monkeypatch.delattr(sys.modules[cpu_kernels.__package__], "cpu_kernels")
    scaling_vit_adafactor.imported_kernels.cache_clear()
    yield
    scaling_vit_adafactor.imported_kernels.cache_clear()


def test_without_numba_it_is_the_same_step(request):
    compiled = train()
    assert scaling_vit_adafactor.imported_kernels() is cpu_kernels
    request.getfixturevalue("without_numba")
    assert scaling_vit_adafactor.imported_kernels() is None
    for one, two in zip(compiled, train(), strict=True):
        if one.dtype == torch.bfloat16:  # where sums end differently, a few moments are rounded the other way
            torch.testing.assert_close(one, two, rtol=2**-7, atol=0)
            assert (one != two).sum() <= 1e-3 * one.numel()
        else:
            assert (one - two).norm() <= 1e-5 * one.norm()


def test_a_missing_module_of_numbas_own_is_no_missing_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    for name in [name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite") and name != "llvmlite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, cpu_kernels.__name__)
    monkeypatch.delattr(sys.modules[cpu_kernels.__package__], "cpu_kernels")
    with pytest.raises(ModuleNotFoundError, match="llvmlite"):
        scaling_vit_adafactor.imported_kernels.__wrapped__()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 600), st.integers(1, 70), st.integers(0, 2**31))
def test_square_sums(rows, columns, seed):
    """Also of no rows, as a process may have of a sharded matrix."""
    grad = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    by_row, by_column = cpu_kernels.square_sums(torch.from_numpy(grad))
    squares = grad.astype(np.float64) ** 2
    np.testing.assert_allclose(by_row.numpy(), squares.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(by_column.numpy(), squares.sum(0, keepdims=True), rtol=1e-5)


def test_moments_are_rounded_as_torch_rounds():
    """All 65,536 upper halves of a float32, with lower halves about the middle and at random; NaN stays NaN."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    lower = np.append(lower, np.random.default_rng(0).integers(2**16, size=10, dtype=np.uint32))
    values = torch.from_numpy((upper | lower).view(np.float32))
    moment = torch.zeros_like(values, dtype=torch.bfloat16)
    ones = torch.ones(len(values), 1), torch.ones(1, values.shape[1])
    cpu_kernels.descend_factored(torch.zeros_like(values), values, moment, *ones, 0.0, 0.0, 0.0, True)
    expected = values.bfloat16()
    assert torch.equal(moment.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(moment[number], expected[number])


def test_the_number_of_threads_changes_nothing():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(train())
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4, dtype=torch.float64),
        torch.zeros(4, 4, dtype=torch.bfloat16),
        torch.zeros(4, 4, device="meta"),
        torch.zeros(4, 6).t(),
    ],
)
def test_what_the_loops_leave_to_tensor_operations(tensor):
    assert scaling_vit_adafactor.cpu_kernels(torch.zeros(4, 4), torch.zeros(2)) is cpu_kernels
    assert scaling_vit_adafactor.cpu_kernels(torch.zeros(4, 4), tensor) is None


def test_a_transposed_parameter():
    """Not contiguous: the loops would write to a copy."""
    torch.manual_seed(0)
    storage, grad = torch.randn(36, 40), torch.randn(40, 36)
    plain, transposed = torch.nn.Parameter(storage.t().contiguous()), torch.nn.Parameter(storage.t())
    assert not transposed.is_contiguous()
    for parameter in (plain, transposed):
        parameter.grad = grad
        ScalingViTAdafactor([parameter], lr=0.01).step()
    torch.testing.assert_close(transposed.detach(), plain.detach(), rtol=1e-5, atol=1e-6)
    assert transposed.data_ptr() == storage.data_ptr()


@pytest.mark.long
def test_torch_keeps_its_number_of_threads():
    """Both share OpenMP. In a process of its own, as numba starts its threads once."""
    code = (
        "import torch; from modeling_siglip_ext.training.optimizers import cpu_kernels as own\n"
        "threads = [torch.get_num_threads()]\n"
        "for rows in (4, 600):\n"
        "    own.square_sums(torch.ones(rows, 3))\n"
        "    threads.append(torch.get_num_threads())\n"
        "print(threads)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 1, 1]"
