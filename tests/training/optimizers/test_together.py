"""Steps for many parameters at once, as on CUDA, against the steps of each by itself."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_siglip_ext.training.optimizers import AdamWBf16, ScalingViTAdafactor, together


SHAPES = [(40, 36)] * 3 + [(36, 40), (64, 4, 40), (64, 4, 40), (5, 7), (9,), (9,), (1,), ()]
KINDS = pytest.mark.parametrize("kind", [AdamWBf16, ScalingViTAdafactor])
# What makes room on the host, or another view of a tensor.
FREE = ("empty_like", "zeros_like", "detach", "unbind", "_local_scalar_dense")


def train(kind, dtype, foreach, steps=4, shapes=SHAPES, last_step=None):
    """Parameters and their states; the first of each shape has no gradient at the first step."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    decayed, others = parameters[::2], parameters[1::2]
    groups = [{"params": decayed, "weight_decay": 0.1, "lr": 0.02}, {"params": others}]
    optimizer = kind(groups, lr=0.01, foreach=foreach)
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            late = step == 0 and shapes.index(parameter.shape) == number
            parameter.grad = None if late else grad
        with last_step if last_step is not None and step == steps - 1 else nullcontext():
            optimizer.step()
    return parameters, [optimizer.state[parameter] for parameter in parameters]


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 3000, 2**26])
def test_together_as_one_by_one(kind, dtype, elements, monkeypatch):
    monkeypatch.setattr(together, "ELEMENTS", elements)
    found, states = train(kind, dtype, foreach=True)
    expected, expected_states = train(kind, dtype, foreach=False)
    if dtype == torch.bfloat16:  # one by one, decay and step are rounded each for itself
        expected, _ = train(kind, torch.float32, foreach=False)
    for one, other, state, expected_state in zip(found, expected, states, expected_states, strict=True):
        assert state.keys() == expected_state.keys()
        for name, value in expected_state.items():
            assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape), name
        # where sums end differently, a moment may be rounded to the other neighbour
        rounding = 2**-7 if dtype == torch.bfloat16 else 1e-4
        assert (one - other).norm() <= rounding * other.norm() + 1e-7
        for name in state.keys() - {"exp_avg", "step"}:
            torch.testing.assert_close(state[name], expected_state[name], rtol=1e-5, atol=1e-12)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_the_host = args and isinstance(args[0], torch.Tensor) and args[0].ndim == 0
        self.count += not on_the_host and func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


@KINDS
def test_operations_do_not_grow_with_the_number_of_parameters(kind):
    counts = []
    for layers in (2, 20):  # the first layer is a step behind
        calls = Calls()
        train(kind, torch.float32, True, shapes=[(40, 36), (36, 48), (48,), (36,)] * layers, last_step=calls)
        counts.append(calls.count)
    assert 10 <= counts[0] == counts[1] <= 160


@KINDS
def test_counters_of_a_loaded_state_are_on_the_host(kind):
    parameters = [torch.nn.Parameter(torch.ones(3))]
    parameters[0].grad = torch.ones(3)
    optimizer = kind(parameters)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = state["state"][0]["step"].to("meta")  # a device that gives no values
    with pytest.raises(NotImplementedError, match="meta"):
        kind(parameters).load_state_dict(state)


@KINDS
def test_a_copy_goes_on_alike(kind):
    parameter = torch.nn.Parameter(torch.ones(6, 5))
    optimizer = kind([parameter], lr=0.1, foreach=True)
    parameter.grad = torch.ones(6, 5)
    optimizer.step()
    copied_parameter, copied = copy.deepcopy((parameter, optimizer))
    assert copied.foreach is True
    for one, step in ((parameter, optimizer.step), (copied_parameter, copied.step)):
        one.grad = torch.full((6, 5), 0.5)
        step()
    assert torch.equal(parameter, copied_parameter)
